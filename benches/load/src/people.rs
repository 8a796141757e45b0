//! The people of the directory: person000000 and so on, each with a password of their own.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

pub const SUFFIX: &str = "dc=load,dc=example";
pub const SERVICE_DN: &str = "cn=service,dc=load,dc=example";
pub const SERVICE_PASSWORD: &str = "service-password";

pub fn address(person: u64) -> String {
    format!("person{person:06}@load.example")
}

pub fn password(person: u64) -> String {
    format!("correct-horse-{person:06}")
}

pub fn dn(person: u64) -> String {
    format!("uid=person{person:06},ou=people,{SUFFIX}")
}

/// Writes the whole directory for slapadd.
pub fn write_ldif(path: &Path, people: u64) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    write!(
        file,
        "dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: Load\ndc: load\n\n\
         dn: ou=people,{SUFFIX}\nobjectClass: organizationalUnit\n\n\
         dn: {SERVICE_DN}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\n\
         userPassword: {SERVICE_PASSWORD}\n\n"
    )?;
    for person in 0..people {
        write!(
            file,
            "dn: {}\nobjectClass: inetOrgPerson\nuid: person{person:06}\ncn: Person {person}\nsn: {person}\n\
             displayName: Person {person}\nmail: {}\nemployeeType: staff\nuserPassword: {}\n\n",
            dn(person),
            address(person),
            salted(person)
        )?;
    }
    Ok(file.flush()?)
}

/// `{SSHA}`, what most directories hold.
fn salted(person: u64) -> String {
    let salt = person.to_be_bytes();
    let mut bytes =
        Sha1::new().chain_update(password(person)).chain_update(salt).finalize().to_vec();
    bytes.extend_from_slice(&salt);
    format!("{{SSHA}}{}", STANDARD.encode(bytes))
}
