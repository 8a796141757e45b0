//! Attacks and ordinary life, played with fixed seeds against the rules that are built in. Each says who was delayed or
//! denied, how many binds reached the directory, and what memory it took. Beside the shield that is modelled which the
//! rules are made for: a remembered password or refusal costs no bind, and a login gets three wrong ones in ten minutes
//! (`auth.wrong_binds`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::tally::mix;
use super::{Course, Outcome, Subject, Throttle};
use crate::config::throttle::Throttle as Settings;
use crate::secret::Password;
use crate::service::Service;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// What became of some attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    attempts: u32,
    delayed: u32,
    denied: u32,
    binds: u32,
}

struct World {
    throttle: Throttle,
    start: Instant,
    /// When the directory last said something of this password of this login.
    asked: HashMap<(String, String), u64>,
    /// When it last heard wrong ones of a login.
    wrong: HashMap<String, Vec<u64>>,
}

impl World {
    fn new() -> Self {
        let start = crate::clock::now();
        let throttle = Throttle::new(&Settings::default(), [7; 32], start);
        Self { throttle, start, asked: HashMap::new(), wrong: HashMap::new() }
    }

    /// One attempt at a second since the start; right passwords are "right".
    fn attempt(&mut self, second: u64, ip: IpAddr, login: &str, password: &str, seen: &mut Seen) {
        let now = self.start + Duration::from_secs(second);
        let subject = Subject {
            client: Some(ip),
            login: Some(login),
            service: Some(Service::Imap),
            ..Subject::default()
        };
        seen.attempts += 1;
        match self.throttle.check(&subject, now).action {
            Course::Go => {}
            Course::Delay(_) => seen.delayed += 1,
            Course::Deny => {
                seen.denied += 1;
                return;
            }
        }
        let outcome = self.ask(second, login, password, seen);
        self.throttle.learn(&subject, outcome, now);
    }

    /// What memory or the directory says.
    fn ask(&mut self, second: u64, login: &str, password: &str, seen: &mut Seen) -> Outcome {
        let is_right = password == "right";
        let guess = || Some(self.throttle.guess(login, &Password::new(password.as_bytes())));
        let remembered = if is_right { 15 * MINUTE } else { 10 * MINUTE };
        let key = (login.to_owned(), password.to_owned());
        let is_known = self.asked.get(&key).is_some_and(|asked| second < asked + remembered);
        if !is_known {
            if !is_right {
                let wrong = self.wrong.entry(login.into()).or_default();
                wrong.retain(|then| second < then + 10 * MINUTE);
                if wrong.len() >= 3 {
                    return Outcome::Unproven(guess());
                }
                wrong.push(second);
            }
            self.asked.insert(key, second);
            seen.binds += 1;
        }
        if is_right { Outcome::Accepted } else { Outcome::Failed(guess()) }
    }

    fn says(&self, what: &str, seen: &[(&str, Seen)]) {
        let bytes = self.throttle.bytes();
        eprintln!("{what}: {seen:?}; {} KiB", bytes / 1024);
        assert!(bytes < 100 << 20, "{bytes}");
    }
}

fn ip(number: u64) -> IpAddr {
    let [.., a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(100, a, b, c).into()
}

fn login(number: u64) -> String {
    format!("person{number}@planetexpress.com")
}

const OFFICE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Five hundred people behind one address have been here for a while; one morning all passwords are new. Each has two
/// devices that go on with the old one every five minutes until noon.
fn office_after_a_change(world: &mut World) -> (Seen, Seen) {
    let (mut people, mut devices) = (Seen::default(), Seen::default());
    for minute in 0..4 * 60 {
        for person in 0..500 {
            // Within the first hour they come and type the new password; then their client asks every ten minutes.
            let comes = mix(person) % 60;
            if minute >= comes && (minute - comes).is_multiple_of(10) {
                world.attempt(DAY + minute * MINUTE, OFFICE, &login(person), "right", &mut people);
            }
            for device in 0..2 {
                if (minute + mix(person * 2 + device)).is_multiple_of(5) {
                    let second = DAY + minute * MINUTE + 30;
                    world.attempt(second, OFFICE, &login(person), "old", &mut devices);
                }
            }
        }
    }
    (people, devices)
}

#[test]
fn an_office_of_five_hundred_is_spared_after_a_password_change() {
    let mut world = World::new();
    let mut before = Seen::default();
    for person in 0..500 {
        world.attempt(person, OFFICE, &login(person), "right", &mut before);
    }

    let (people, devices) = office_after_a_change(&mut world);

    world.says("office", &[("people", people), ("devices", devices)]);
    assert_eq!((before.delayed, before.denied), (0, 0));
    assert_eq!((people.delayed, people.denied), (0, 0));
    assert_eq!((devices.delayed, devices.denied), (0, 0));
}

#[test]
fn an_office_that_nobody_remembers_is_slowed_down_at_worst() {
    // The daemon has just been started, and the devices come first.
    let mut world = World::new();

    let (people, devices) = office_after_a_change(&mut world);

    world.says("office after a restart", &[("people", people), ("devices", devices)]);
    assert_eq!(people.denied, 0);
    // Each of the five hundred is let in, with a delay at most in the first hour.
    assert!(people.delayed < people.attempts / 10, "{people:?}");
}

#[test]
fn a_guesser_in_an_office_locks_nobody_out_who_works_there() {
    let mut world = World::new();
    let (mut people, mut guesser) = Default::default();
    for person in 0..500 {
        world.attempt(person, OFFICE, &login(person), "right", &mut people);
    }
    // Three a second for four hours, at names that are mostly nobody's.
    for guess in 0..4 * HOUR * 3 {
        let second = HOUR + guess / 3;
        let victim = login(400 + mix(guess) % 100_000);
        world.attempt(second, OFFICE, &victim, &format!("guess{guess}"), &mut guesser);
        if guess % 10 == 0 {
            world.attempt(second, OFFICE, &login(mix(guess) % 500), "right", &mut people);
        }
    }

    world.says("guesser in an office", &[("people", people), ("guesser", guesser)]);
    assert_eq!((people.delayed, people.denied), (0, 0));
    assert!(guesser.denied > guesser.attempts / 2, "{guesser:?}");
}

#[test]
fn a_phone_with_an_old_password_hurts_nobody_for_a_week() {
    let mut world = World::new();
    let (mut phone, mut laptop) = (Seen::default(), Seen::default());
    let fry = &login(1);
    for step in 0..7 * DAY / (5 * MINUTE) {
        let second = step * 5 * MINUTE;
        // At home by day and in the net of its operator on the way.
        let from = if step % 3 == 0 { ip(step % 50) } else { OFFICE };
        world.attempt(second, from, fry, "old", &mut phone);
        world.attempt(second + 60, OFFICE, fry, "right", &mut laptop);
    }

    world.says("phone", &[("phone", phone), ("laptop", laptop)]);
    assert_eq!((laptop.delayed, laptop.denied), (0, 0));
    assert_eq!((phone.delayed, phone.denied), (0, 0));
}

#[test]
fn one_source_that_guesses_is_stopped() {
    let mut world = World::new();
    let (mut guesser, mut owner, mut neighbour) = Default::default();
    let fry = &login(1);
    world.attempt(0, OFFICE, fry, "right", &mut owner);
    // Ten an hour would be a patient guesser; this one tries one a second for a day.
    for guess in 0..DAY {
        let second = 1 + guess;
        world.attempt(second, ip(9), fry, &format!("guess{guess}"), &mut guesser);
        if guess % 600 == 0 {
            world.attempt(second, OFFICE, fry, "right", &mut owner);
            // Somebody else behind the guesser's provider, in another net of it.
            world.attempt(second, ip(9 + 256), &login(2), "right", &mut neighbour);
        }
    }

    world.says("guesser", &[("guesser", guesser), ("owner", owner), ("neighbour", neighbour)]);
    assert_eq!((owner.delayed, owner.denied), (0, 0));
    assert_eq!((neighbour.delayed, neighbour.denied), (0, 0));
    // Three in ten minutes, all day, were it not denied most of the time.
    assert!(guesser.binds <= 3 * 6 * 24 / 2, "{guesser:?}");
    assert!(guesser.denied > guesser.attempts / 100 * 99, "{guesser:?}");
}

#[test]
fn spraying_from_ten_thousand_addresses_is_slowed_and_spares_whoever_is_known() {
    let mut world = World::new();
    let (mut bots, mut owners, mut travellers) = Default::default();
    for person in 0..10_000 {
        world.attempt(
            person / 100,
            ip(1 << 20 | person << 4),
            &login(person),
            "right",
            &mut owners,
        );
    }
    // Six rounds, ten minutes each: every address tries one login with one of the well-known passwords.
    for round in 0..6_u64 {
        for bot in 0..10_000_u64 {
            let second = HOUR + round * 600 + bot * 600 / 10_000;
            let victim = mix(round << 32 | bot) % 10_000;
            world.attempt(
                second,
                ip(bot << 8),
                &login(victim),
                &format!("Summer{round}"),
                &mut bots,
            );
            if bot % 10 == 0 {
                let home = ip(1 << 20 | victim << 4);
                world.attempt(second, home, &login(victim), "right", &mut owners);
            }
            if bot % 100 == 0 {
                // Somebody in a hotel.
                let hotel = ip(2 << 20 | bot);
                world.attempt(second, hotel, &login(victim), "right", &mut travellers);
            }
        }
    }

    world.says("spraying", &[("bots", bots), ("owners", owners), ("travellers", travellers)]);
    assert_eq!((owners.delayed, owners.denied), (0, 0));
    assert_eq!(travellers.denied, 0);
    assert!(bots.delayed > bots.attempts / 10 * 9, "{bots:?}");
}

#[test]
fn a_botnet_on_one_account_does_not_lock_its_owner_out() {
    let mut world = World::new();
    let (mut bots, mut owner, mut elsewhere) = Default::default();
    let fry = &login(1);
    world.attempt(0, OFFICE, fry, "right", &mut owner);
    for guess in 0..DAY {
        let second = 1 + guess;
        let bot = ip((mix(guess) % 5_000) << 8);
        world.attempt(second, bot, fry, &format!("guess{guess}"), &mut bots);
        if guess % 300 == 0 {
            world.attempt(second, OFFICE, fry, "right", &mut owner);
        }
        if guess % 3600 == 1800 {
            world.attempt(second, ip(7 << 16 | guess), fry, "right", &mut elsewhere);
        }
    }

    world.says("botnet", &[("bots", bots), ("owner", owner), ("elsewhere", elsewhere)]);
    assert_eq!((owner.delayed, owner.denied), (0, 0));
    // From a new place the owner waits, and gets in.
    assert_eq!(elsewhere.denied, 0);
    assert!(bots.delayed > bots.attempts / 10 * 9, "{bots:?}");
    // The directory hears three in ten minutes.
    assert!(bots.binds <= 3 * 6 * 24 + 3, "{bots:?}");
}

#[test]
fn millions_of_keys_are_bounded_and_push_out_nobody_who_matters() {
    // benches/micro.rs does the same with ten million.
    let keys = 100_000;
    let mut world = World::new();
    let mut guesser = Seen::default();
    for guess in 0..40 {
        world.attempt(0, ip(9), &login(1), &format!("guess{guess}"), &mut guesser);
    }
    assert_eq!(guesser.denied, 7);
    let mut times = Vec::new();

    for number in 0..keys {
        let now = world.start + Duration::from_secs(1 + number * 600 / keys);
        let name = format!("{number}@example.org");
        let client = Some(ip(1 << 23 | number));
        let subject = Subject { client, login: Some(&name), ..Subject::default() };
        world.throttle.learn(&subject, Outcome::Failed(Some(7)), now);
        if number % 64 == 0 {
            let begun = crate::clock::now();
            let judgement = world.throttle.check(&subject, now);
            times.push(begun.elapsed());
            assert_ne!(judgement.action, Course::Deny);
        }
    }

    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 1000).copied().unwrap_or_default();
    let bytes = world.throttle.bytes();
    eprintln!("{keys} keys: {} KiB; a check: p50 {:?}, p99 {:?}", bytes / 1024, at(500), at(990));
    assert!(bytes < 96 << 20, "{bytes}");
    world.attempt(610, ip(9), &login(1), "another", &mut guesser);
    assert_eq!(guesser.denied, 8);
}
