//! Passwords of local accounts: hashed with argon2id, checked against that or against what another system made.
//!
//! A stored hash is in Dovecot's notation, `{SCHEME}` and the hash, or a bare `$…$` string as crypt(3) and the PHC write
//! them. It is never rewritten: a mailbox that goes to a directory and comes back finds it byte for byte.
//!
//! | scheme | hash |
//! |---|---|
//! | `{ARGON2ID}`, `{ARGON2I}` | `$argon2id$v=19$m=19456,t=2,p=1$…` |
//! | `{BLF-CRYPT}` | `$2y$10$…` (2a and 2b too) |
//! | `{SHA256-CRYPT}`, `{SHA512-CRYPT}` | `$5$…`, `$6$…`, with `rounds=` |
//! | `{CRYPT}` | one of the above, by its beginning |
//! | `{PBKDF2}` | `$1$salt$rounds$hex` (HMAC-SHA1) |
//! | `{SSHA}`, `{SSHA256}`, `{SSHA512}` | base64 of digest and salt |
//! | `{SHA}`, `{SHA256}`, `{SHA512}` | base64 of the digest |
//!
//! Costs are bounded, so that one stored hash cannot hold the processor for minutes.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordVerifier, Salt};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::secret::{Password, Secret};

/// OWASP's first choice: 19 MiB, two passes (about 40 ms).
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// The most that a stored hash may ask for.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_BCRYPT_COST: u32 = 14;
const MAX_ROUNDS: u32 = 1_000_000;
/// The longest hash that is kept, in bytes.
const MAX_HASH_BYTES: usize = 1024;
/// Checks at one time: each holds a thread and its memory.
const CHECKS: usize = 2;
/// Checks that wait for a place.
const QUEUE: usize = 64;

/// Why a stored hash cannot be used. Never holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// A scheme that is not in the table above.
    #[error("password scheme is not known here")]
    UnknownScheme,
    /// Not what its scheme writes.
    #[error("not a hash of its scheme")]
    Malformed,
    /// It asks for more memory or time than we give.
    #[error("hash asks for too much memory or too many rounds")]
    TooCostly,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Checked {
    /// It is the password.
    Right,
    /// It is not.
    Wrong,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Too many checks wait already.
    #[error("too many password checks wait")]
    Busy,
    /// The stored hash cannot be used.
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// Checks passwords on threads of their own, a few at a time.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    running: Arc<Semaphore>,
    /// Those that run and those that wait.
    all: Arc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        let running = Arc::new(Semaphore::new(CHECKS));
        Self { running, all: Arc::new(Semaphore::new(CHECKS + QUEUE)) }
    }
}

impl Checks {
    /// Checks a password. May be dropped; a check that has begun then ends on its thread.
    pub(super) async fn check(
        &self,
        stored: Secret,
        password: Password,
    ) -> Result<Checked, CheckError> {
        let place = Arc::clone(&self.all).try_acquire_owned().map_err(|_| CheckError::Busy)?;
        let turn = Arc::clone(&self.running).acquire_owned().await;
        let turn = turn.map_err(|_| CheckError::Busy)?;
        let work = move || {
            // Given back when the work ends, even if nobody waits for it any more.
            let _held = (place, turn);
            check(stored.expose(), &password)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(checked) => Ok(checked?),
            Err(_) => Err(CheckError::Busy),
        }
    }
}

/// Hashes a new password with argon2id. `salt` is random.
///
/// # Errors
/// Only if the library finds fault with our own parameters.
pub fn hash(password: &Password, salt: [u8; 16]) -> Result<Secret, HashError> {
    let mut output = [0; 32];
    argon2(Algorithm::Argon2id, MEMORY_KIB, PASSES, 1, output.len())?
        .hash_password_into(password.as_bytes(), &salt, &mut output)
        .map_err(|_| HashError::Malformed)?;
    let [salt, output] = [&salt[..], &output[..]].map(|bytes| BASE64_STANDARD_NO_PAD.encode(bytes));
    let text = format!("{{ARGON2ID}}$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${output}");
    Ok(Secret::new(text))
}

/// Whether a text can be kept as a mailbox's hash: its scheme is known and it is one of that scheme.
///
/// # Errors
/// Why not.
pub fn accept_hash(stored: &str) -> Result<(), HashError> {
    if stored.len() > MAX_HASH_BYTES || !stored.is_ascii() || stored.contains(char::is_whitespace) {
        return Err(HashError::Malformed);
    }
    Stored::parse(stored).map(drop)
}

/// Checks a password against a stored hash. Takes its time: call it where that holds nobody up.
///
/// # Errors
/// The hash cannot be used.
pub fn check(stored: &str, password: &Password) -> Result<Checked, HashError> {
    let right = Stored::parse(stored)?.matches(password.as_bytes())?;
    Ok(if right { Checked::Right } else { Checked::Wrong })
}

/// A stored hash, understood and found affordable.
enum Stored<'a> {
    Argon2(Box<(PasswordHash<'a>, Argon2<'static>)>),
    Bcrypt(&'a str),
    Pbkdf2 { salt: &'a str, rounds: u32, output: Vec<u8> },
    Salted { kind: Sha, digest: Vec<u8>, salt: Vec<u8> },
    ShaCrypt { kind: Sha, rounds: usize, salt: &'a str, hash: &'a str },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sha {
    One,
    Two256,
    Two512,
}

impl<'a> Stored<'a> {
    fn parse(stored: &'a str) -> Result<Self, HashError> {
        let Some((scheme, hash)) = stored.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        else {
            return Self::modular(stored);
        };
        let modular = |beginnings: &[&str]| match beginnings.iter().any(|it| hash.starts_with(it)) {
            true => Self::modular(hash),
            false => Err(HashError::Malformed),
        };
        match scheme.to_ascii_uppercase().as_str() {
            "ARGON2ID" => modular(&["$argon2id$"]),
            "ARGON2I" => modular(&["$argon2i$"]),
            "BLF-CRYPT" => modular(&["$2"]),
            "SHA256-CRYPT" => modular(&["$5$"]),
            "SHA512-CRYPT" => modular(&["$6$"]),
            "CRYPT" => Self::modular(hash),
            "PBKDF2" => pbkdf2(hash),
            "SSHA" => salted(Sha::One, hash, Salted::Yes),
            "SSHA256" => salted(Sha::Two256, hash, Salted::Yes),
            "SSHA512" => salted(Sha::Two512, hash, Salted::Yes),
            "SHA" | "SHA1" => salted(Sha::One, hash, Salted::No),
            "SHA256" => salted(Sha::Two256, hash, Salted::No),
            "SHA512" => salted(Sha::Two512, hash, Salted::No),
            _ => Err(HashError::UnknownScheme),
        }
    }

    /// What says itself what it is.
    fn modular(hash: &'a str) -> Result<Self, HashError> {
        if hash.starts_with("$argon2") {
            return argon2_hash(hash);
        }
        match hash.get(..3) {
            Some("$2a" | "$2b" | "$2y") => bcrypt_hash(hash),
            Some("$5$") => sha_crypt(Sha::Two256, hash),
            Some("$6$") => sha_crypt(Sha::Two512, hash),
            _ => Err(HashError::UnknownScheme),
        }
    }

    fn matches(&self, password: &[u8]) -> Result<bool, HashError> {
        Ok(match self {
            Self::Argon2(parts) => {
                let (hash, argon2) = &**parts;
                match argon2.verify_password(password, hash) {
                    Ok(()) => true,
                    Err(argon2::password_hash::Error::Password) => false,
                    Err(_) => return Err(HashError::Malformed),
                }
            }
            Self::Bcrypt(hash) => match bcrypt::non_truncating_verify(password, hash) {
                Ok(right) => right,
                // A password of more than 71 bytes is not cut: it is nobody's.
                Err(bcrypt::BcryptError::Truncation(_)) => false,
                Err(_) => return Err(HashError::Malformed),
            },
            Self::Pbkdf2 { salt, rounds, output } => {
                let mut made = vec![0; output.len()];
                pbkdf2::pbkdf2_hmac::<Sha1>(password, salt.as_bytes(), *rounds, &mut made);
                made.ct_eq(output).into()
            }
            Self::Salted { kind, digest, salt } => kind.digest(password, salt).ct_eq(digest).into(),
            Self::ShaCrypt { kind, rounds, salt, hash } => {
                kind.crypt(password, salt, *rounds)?.as_bytes().ct_eq(hash.as_bytes()).into()
            }
        })
    }
}

impl Sha {
    const fn bytes(self) -> usize {
        match self {
            Self::One => 20,
            Self::Two256 => 32,
            Self::Two512 => 64,
        }
    }

    fn digest(self, password: &[u8], salt: &[u8]) -> Vec<u8> {
        fn of<D: Digest>(password: &[u8], salt: &[u8]) -> Vec<u8> {
            D::new().chain_update(password).chain_update(salt).finalize().to_vec()
        }
        match self {
            Self::One => of::<Sha1>(password, salt),
            Self::Two256 => of::<Sha256>(password, salt),
            Self::Two512 => of::<Sha512>(password, salt),
        }
    }

    /// crypt(3)'s base64 of the hash.
    fn crypt(self, password: &[u8], salt: &str, rounds: usize) -> Result<String, HashError> {
        let failed = |_| HashError::Malformed;
        match self {
            Self::Two512 => {
                let params = sha_crypt::Sha512Params::new(rounds).map_err(failed)?;
                sha_crypt::sha512_crypt_b64(password, salt.as_bytes(), &params).map_err(failed)
            }
            Self::One | Self::Two256 => {
                let params = sha_crypt::Sha256Params::new(rounds).map_err(failed)?;
                sha_crypt::sha256_crypt_b64(password, salt.as_bytes(), &params).map_err(failed)
            }
        }
    }
}

fn argon2(
    algorithm: Algorithm,
    memory: u32,
    passes: u32,
    lanes: u32,
    output: usize,
) -> Result<Argon2<'static>, HashError> {
    let params =
        Params::new(memory, passes, lanes, Some(output)).map_err(|_| HashError::Malformed)?;
    Ok(Argon2::new(algorithm, Version::V0x13, params))
}

fn argon2_hash(text: &str) -> Result<Stored<'_>, HashError> {
    let hash = PasswordHash::new(text).map_err(|_| HashError::Malformed)?;
    let algorithm = Algorithm::try_from(hash.algorithm).map_err(|_| HashError::UnknownScheme)?;
    let params = Params::try_from(&hash).map_err(|_| HashError::Malformed)?;
    if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES || params.p_cost() > 16 {
        return Err(HashError::TooCostly);
    }
    let output = hash.hash.ok_or(HashError::Malformed)?.len();
    if hash.salt.is_none_or(|salt: Salt<'_>| salt.as_str().is_empty()) {
        return Err(HashError::Malformed);
    }
    let argon2 = argon2(algorithm, params.m_cost(), params.t_cost(), params.p_cost(), output)?;
    Ok(Stored::Argon2(Box::new((hash, argon2))))
}

/// `$2y$10$` and 53 letters.
fn bcrypt_hash(text: &str) -> Result<Stored<'_>, HashError> {
    let fields: Vec<&str> = text.split('$').collect();
    let ["", _, cost, letters] = fields.as_slice() else { return Err(HashError::Malformed) };
    let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || matches!(letter, b'.' | b'/');
    let is_cost = cost.len() == 2 && cost.bytes().all(|digit| digit.is_ascii_digit());
    if !is_cost || letters.len() != 53 || !letters.bytes().all(is_letter) {
        return Err(HashError::Malformed);
    }
    match cost.parse::<u32>() {
        Ok(cost) if cost > MAX_BCRYPT_COST => Err(HashError::TooCostly),
        Ok(cost) if cost >= 4 => Ok(Stored::Bcrypt(text)),
        _ => Err(HashError::Malformed),
    }
}

/// `$6$rounds=N$salt$hash`; without rounds 5000 (<https://www.akkadia.org/drepper/SHA-crypt.txt>).
fn sha_crypt(kind: Sha, text: &str) -> Result<Stored<'_>, HashError> {
    let rest = text.get(3..).ok_or(HashError::Malformed)?;
    let (rounds, rest) = match rest.strip_prefix("rounds=").map(|rest| rest.split_once('$')) {
        Some(Some((rounds, rest))) => {
            (rounds.parse::<u32>().map_err(|_| HashError::Malformed)?, rest)
        }
        Some(None) => return Err(HashError::Malformed),
        None => (5000, rest),
    };
    if rounds > MAX_ROUNDS {
        return Err(HashError::TooCostly);
    }
    let (salt, hash) = rest.split_once('$').ok_or(HashError::Malformed)?;
    let length = if kind == Sha::Two512 { 86 } else { 43 };
    if salt.len() > 16 || hash.len() != length || rounds < 1000 {
        return Err(HashError::Malformed);
    }
    let rounds = usize::try_from(rounds).map_err(|_| HashError::TooCostly)?;
    Ok(Stored::ShaCrypt { kind, rounds, salt, hash })
}

/// `$1$salt$rounds$hex`, as Dovecot writes it.
fn pbkdf2(text: &str) -> Result<Stored<'_>, HashError> {
    let fields: Vec<&str> = text.split('$').collect();
    let ["", "1", salt, rounds, hex] = fields.as_slice() else {
        return Err(HashError::Malformed);
    };
    let rounds: u32 = rounds.parse().map_err(|_| HashError::Malformed)?;
    if rounds > MAX_ROUNDS {
        return Err(HashError::TooCostly);
    }
    let output = unhex(hex).filter(|output| output.len() == 20).ok_or(HashError::Malformed)?;
    if rounds == 0 || salt.is_empty() {
        return Err(HashError::Malformed);
    }
    Ok(Stored::Pbkdf2 { salt, rounds, output })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Salted {
    No,
    Yes,
}

fn salted(kind: Sha, text: &str, salted: Salted) -> Result<Stored<'_>, HashError> {
    let mut digest = BASE64_STANDARD.decode(text).map_err(|_| HashError::Malformed)?;
    if digest.len() < kind.bytes() {
        return Err(HashError::Malformed);
    }
    let salt = digest.split_off(kind.bytes());
    if salt.is_empty() != (salted == Salted::No) {
        return Err(HashError::Malformed);
    }
    Ok(Stored::Salted { kind, digest, salt })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(stored: &str, password: &str) -> Result<Checked, HashError> {
        check(stored, &Password::new(password))
    }

    /// Made by `doveadm pw` of Dovecot 2.3.19, `openssl passwd` and the argon2 of its authors.
    const FOREIGN: &[&str] = &[
        "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$6dtdtSrjBCcSr50GG48qCQ$pF6xjj6Wp1J7HcMyhCk5rjRNQyY5A9WcObqIvHYJP2E",
        "{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$w6/4MGDYniqn2jRKVEbgOw$0HEM2+gYgh1L2saHnr2YG3667pVwYCAxREN3Vz9+8rA",
        "{BLF-CRYPT}$2y$05$sN/qwt3vyTGc2/eXcDLO7ex3IAKgXJh2K6gdAHLjvaWu7EU1VWvFe",
        "{SHA256-CRYPT}$5$cHCFZCxxiRF2RlUa$J3aeIjz8svBEjX187u72lOYGmZgbrN.Tj.JZGa2pkm1",
        "{SHA512-CRYPT}$6$LMfXcBYpMQXVJKc8$Y7eVWx/AwYkMU2Xnde8w34vBOTEIcaOdTvWKM74rDKaH7qWHipe167YVvokmA/FArVc0CO/lTcEyA0Fqi1nPU1",
        "{PBKDF2}$1$y0cBMqfi6S.Rj9bb$5000$efbcf7940dadafdedf3caab23728d0926554baa0",
        "{SSHA}1UL+iFTs1Xz8OROsdhjG/fk8rrVZryrM",
        "{SSHA256}HFOlGXHwJ8uCi7dVbdpl64ZrTixOBvZf358VZ9FziR4/1hVD",
        "{SSHA512}QhJeIN5OucxuWZ1iOtkKXatNCmdR81Mum/qzctwNu98lTlWQT7EJ8Jqn+KYsC2t5mLLDR3JtgBvKDpVyaKhxSCIeZWc=",
        "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
        "{SHA512}vSsar3708Jvp9Szi2NWZZ02Bqp1qRCFpbcTZPdBhnWgs5WtNZKnvCXdhztmeD2cmW192CF5bDufKRpayrW/isg==",
        "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
        "{CRYPT}$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
        "$6$rounds=10000$saltstring$8BTo06G/5FoSytD1T0cp9b6u1/eLMbXRWR32saoSVCPI8HactmA7e1cC6THh4kpvGWDoPyAxOz2Ig8bq3eay//",
    ];

    #[test]
    fn hashes_of_other_systems_are_understood() {
        for stored in FOREIGN {
            assert_eq!(accept_hash(stored), Ok(()), "{stored}");
            assert_eq!(checked(stored, "secret"), Ok(Checked::Right), "{stored}");
            for wrong in ["Secret", "secret "] {
                assert_eq!(checked(stored, wrong), Ok(Checked::Wrong), "{stored} {wrong:?}");
            }
        }
    }

    #[test]
    fn a_new_hash_is_that_of_its_password_alone() {
        let password = Password::new(b"\xff p\xc3\xa4ss".to_vec());
        let stored = hash(&password, [7; 16]).unwrap();

        assert!(stored.expose().starts_with("{ARGON2ID}$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_eq!(accept_hash(stored.expose()), Ok(()));
        assert_eq!(check(stored.expose(), &password), Ok(Checked::Right));
        assert_eq!(checked(stored.expose(), "p"), Ok(Checked::Wrong));
        assert_ne!(hash(&password, [8; 16]).unwrap().expose(), stored.expose());
    }

    #[test]
    fn a_long_password_is_not_cut_to_what_bcrypt_can_take() {
        let stored = bcrypt::hash("a".repeat(71), 4).unwrap();

        assert_eq!(checked(&stored, &"a".repeat(71)), Ok(Checked::Right));
        assert_eq!(checked(&stored, &"a".repeat(80)), Ok(Checked::Wrong));
    }

    #[test]
    fn what_is_no_hash_we_know_is_refused_by_name() {
        use HashError::{Malformed, TooCostly, UnknownScheme};
        let long = format!("{{SSHA}}{}", "A".repeat(2000));
        for (stored, error) in [
            ("", UnknownScheme),
            ("secret", UnknownScheme),
            ("{PLAIN}secret", UnknownScheme),
            ("{MD5-CRYPT}$1$abc$def", UnknownScheme),
            ("$1$abc$def", UnknownScheme),
            ("{SSHA}secret!", Malformed),
            ("{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", Malformed),
            ("{SHA}YWJj", Malformed),
            ("{BLF-CRYPT}$6$abc$def", Malformed),
            ("$2y$31$sN/qwt3vyTGc2/eXcDLO7ex3IAKgXJh2K6gdAHLjvaWu7EU1VWvFe", TooCostly),
            ("$2y$10$abc", Malformed),
            ("$2y$+5$sN/qwt3vyTGc2/eXcDLO7ex3IAKgXJh2K6gdAHLjvaWu7EU1VWvFe", Malformed),
            ("$2y$05$sN/qwt3vyTGc2/eXcDLO7ex3IAKgXJh2K6gdAHLjvaWu7EU1VW-Fe", Malformed),
            ("$6$rounds=999999999$abc$def", TooCostly),
            ("$6$rounds=x$abc$def", Malformed),
            ("$6$abc", Malformed),
            ("{PBKDF2}$1$salt$999999999$00", TooCostly),
            ("{PBKDF2}$1$salt$5000$00", Malformed),
            ("$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", TooCostly),
            ("$argon2id$v=19$m=1024,t=200,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", TooCostly),
            ("$argon2id$nonsense", Malformed),
            (long.as_str(), Malformed),
        ] {
            assert_eq!(accept_hash(stored), Err(error), "{stored}");
        }
    }

    #[tokio::test]
    async fn checks_are_bounded_and_what_is_dropped_gives_its_place_back() {
        let checks = Checks::default();
        let stored = hash(&Password::new("secret"), [1; 16]).unwrap();
        let all = checks.all.clone().acquire_many_owned(66).await.unwrap();

        let busy = checks.check(stored.clone(), Password::new("secret")).await;
        assert_eq!(busy, Err(CheckError::Busy));
        drop(all);
        for _ in 0..70 {
            drop(checks.check(stored.clone(), Password::new("secret")));
        }

        let right = checks.check(stored, Password::new("secret")).await;
        assert_eq!(right, Ok(Checked::Right));
    }
}
