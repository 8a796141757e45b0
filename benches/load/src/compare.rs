//! What is compared, in which order. Rounds are taken in turn: each server once, then each again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{Askers, Drive, Mix, Until};
use crate::connection::Connection;
use crate::figures::{Figures, count, mebibytes, quantile};
use crate::site::{ASKS, ON_GATEPOST, REMEMBERS, Site, floor};
use crate::wire::{Asker, Protocol, Said};
use crate::{checkpassword, ldap, storm};

/// Every case by its name in `--only`.
pub const CASES: [&str; 19] = [
    "P8", "P1", "P2", "P3", "P4", "P5", "P6", "P7", "P9", "P11", "P12", "P13", "policy", "mix",
    "rate", "storm", "S1", "S3", "P5known",
];

/// What is measured, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the servers live; emptied by who started this
    #[arg(long, hide = true)]
    dir: PathBuf,
    /// Where gatepost and its small programs were built
    #[arg(long, hide = true)]
    programs: PathBuf,
    /// People in the directory
    #[arg(long, default_value_t = 100_000)]
    pub people: u64,
    /// Rounds, taken in turn
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Seconds for each server in each remembered case and round
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// Only these: P1 P2 P3 P4 P5 P5known P6 P7 P8 P9 P11 P12 P13 policy mix rate storm S1 S3
    #[arg(long, value_delimiter = ',', value_parser = CASES)]
    only: Vec<String>,
    /// Put table and chart into docs/
    #[arg(long, conflicts_with = "only")]
    pub write_docs: bool,
    /// Record Gatepost in this case with perf, into perf.data here
    #[arg(long, value_name = "CASE")]
    perf: Option<String>,
}

/// How many people the remembered cases ask about: they are met again and again.
const REMEMBERED: u64 = 1000;
/// How many people a cold drive asks about, each once.
const COLD: u64 = 4000;

pub struct Compare {
    pub options: Options,
    pub site: Site,
    pub figures: Vec<Figures>,
    /// Figures that are no drive, by name.
    pub single: BTreeMap<String, Vec<f64>>,
    /// Paragraphs that go below the table.
    pub notes: Vec<String>,
    next_new: u64,
    /// People below this number have a mailbox at Gatepost.
    with_mailbox: u64,
}

/// A case, how it is spoken, and how hard.
#[derive(Clone, Copy, Debug)]
struct Load {
    case: &'static str,
    protocol: Protocol,
    connections: u32,
    in_flight: u32,
}

const fn load(case: &'static str, protocol: Protocol, connections: u32, in_flight: u32) -> Load {
    Load { case, protocol, connections, in_flight }
}

/// Runs everything that is wanted.
pub fn run(options: Options) -> anyhow::Result<Compare> {
    let site = Site::new(&options.dir, &options.programs, options.people)?;
    ensure!(options.people >= 2 * REMEMBERED, "at least {} people are needed", 2 * REMEMBERED);
    let mut compare = Compare {
        options,
        site,
        figures: Vec::new(),
        single: BTreeMap::new(),
        notes: Vec::new(),
        next_new: REMEMBERED,
        with_mailbox: 0,
    };
    compare.start()?;
    compare.first_logins()?;
    compare.cold()?;
    compare.known()?;
    compare.remembered()?;
    compare.policy()?;
    compare.template_changed()?;
    compare.mixed()?;
    compare.imap()?;
    checkpassword::measure(&mut compare)?;
    compare.sizes()?;
    storm::measure(&mut compare)?;
    Ok(compare)
}

impl Compare {
    pub fn wants(&self, case: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|wanted| wanted == case)
    }

    fn wants_one_of(&self, cases: &[&str]) -> bool {
        cases.iter().any(|case| self.wants(case))
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.site.start_gatepost(REMEMBERS)?;
        self.site.start_floors()?;
        if self.wants_one_of(&["P1", "P2", "P3", "P5", "P13", "mix", "rate"]) {
            self.site.start_dovecot()?;
        }
        Ok(())
    }

    /// Measures one drive at one server.
    fn drive(&mut self, load: Load, server: &str, round: u32, drive: &Plan) -> anyhow::Result<()> {
        let door = self.site.door(server, load.protocol)?;
        let counted = self.site.counted(server, load.protocol)?;
        let recorder = self.recorder(load.case, server)?;
        let before = counted.cpu()?;
        let done = Drive {
            door: &door,
            askers: drive.askers,
            until: drive.until,
            connections: load.connections,
            in_flight: load.in_flight,
            rate: drive.rate,
        }
        .run()
        .with_context(|| format!("{} at {server}", load.case))?;
        let cpu = counted.cpu()?.saturating_sub(before);
        if let Some(mut recorder) = recorder {
            let pid = rustix::process::Pid::from_child(&recorder);
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
            recorder.wait()?;
        }
        let may_be_later = drive.askers.mix.is_some();
        ensure!(may_be_later || done.0.later == 0, "{server} said later in {}", load.case);
        let figures = Figures::new((load.case, server, round), done, cpu, counted.resident_kib()?);
        self.add(figures);
        Ok(())
    }

    fn add(&mut self, figures: Figures) {
        let Figures { case, server, round, rate, cpu, p50, p99, .. } = &figures;
        eprintln!(
            "{case}\t{server}\t{round}\t{rate:.0}/s\t{cpu:.2} µs\tp50 {p50:.0}\tp99 {p99:.0}"
        );
        self.figures.push(figures);
    }

    fn recorder(&self, case: &str, server: &str) -> anyhow::Result<Option<Child>> {
        let is_wanted = |wanted: &String| case.split(' ').next() == Some(wanted);
        let is_ours = [REMEMBERS.name, ASKS.name, ON_GATEPOST].contains(&server);
        if !is_ours || !self.options.perf.as_ref().is_some_and(is_wanted) {
            return Ok(None);
        }
        let pid = self.site.counted(server, Protocol::Dovecot)?.root().to_string();
        let mut perf = Command::new("perf");
        perf.args(["record", "-q", "-g", "-o", "perf.data", "-p", &pid]);
        Ok(Some(perf.spawn().context("perf")?))
    }

    /// Lets a server remember people; the first time this makes their mailboxes at Gatepost.
    pub fn warm(&mut self, server: &str, protocol: Protocol, people: u64) -> anyhow::Result<()> {
        let door = self.site.door(server, protocol)?;
        let connections = if protocol.is_one_shot() { 8 } else { 1 };
        let drive = Drive {
            door: &door,
            askers: Askers::of(0, people),
            until: Until::Turns(people),
            connections,
            in_flight: 16,
            rate: None,
        };
        let (tally, took) = drive.run().with_context(|| format!("warming {server}"))?;
        ensure!(tally.later == 0, "{server} said later to {}", tally.later);
        eprintln!("{server} met {people} people in {:.1} s", took.as_secs_f64());
        // Dovecot makes an address that gave a wrong password over IMAP wait from then on.
        if protocol != Protocol::Imap {
            self.refuses(server, protocol)?;
        }
        if server == REMEMBERS.name {
            self.with_mailbox = self.with_mailbox.max(people);
        }
        Ok(())
    }

    /// A server that lets everybody in would be fast.
    fn refuses(&mut self, server: &str, protocol: Protocol) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.site.door(server, protocol)?)?;
        connection.ask(1, Asker::Wrong(0))?;
        connection.flush()?;
        let heard = connection.next()?;
        ensure!(heard.said == Said::Refused, "{server} answered a wrong password with {heard:?}");
        Ok(())
    }

    /// People whom nobody met yet.
    fn new_people(&mut self, people: u64) -> anyhow::Result<u64> {
        let first = self.next_new;
        self.next_new += people;
        ensure!(self.next_new <= self.options.people, "too few people for so many first logins");
        Ok(first)
    }

    fn share(&self, of: u64) -> u64 {
        of.min(self.options.people / (4 * u64::from(self.options.rounds)))
    }

    fn cold_people(&self) -> u64 {
        COLD.min(self.options.people / 2)
    }

    /// P7: mailboxes are made.
    fn first_logins(&mut self) -> anyhow::Result<()> {
        if !self.wants("P7") {
            return Ok(());
        }
        let (single, many) = (self.share(500), self.share(2000));
        for round in 1..=self.options.rounds {
            let first = self.new_people(2 * single + many)?;
            let one = load("P7 first login, one at a time", Protocol::Dovecot, 1, 1);
            self.drive(one, REMEMBERS.name, round, &Plan::each(first, single))?;
            let mut six = Plan::each(first + single, single);
            six.askers.each = 6;
            six.until = Until::Turns(6 * single);
            let load_six = load("P7 first login, 6 at once for each", Protocol::Dovecot, 6, 1);
            self.drive(load_six, REMEMBERS.name, round, &six)?;
            let sixteen = load("P7 first login, 16 in flight", Protocol::Dovecot, 1, 16);
            self.drive(sixteen, REMEMBERS.name, round, &Plan::each(first + 2 * single, many))?;
            self.site.forget(REMEMBERS.name)?;
            let cold = load("P7 the same people, cold, one at a time", Protocol::Dovecot, 1, 1);
            self.drive(cold, REMEMBERS.name, round, &Plan::each(first, single))?;
        }
        Ok(())
    }

    /// P5 and the cold part of P6: the mailbox exists, the entry is unknown.
    fn cold(&mut self) -> anyhow::Result<()> {
        if !self.wants_one_of(&["P5", "P6"]) {
            return Ok(());
        }
        let people = self.cold_people();
        self.warm(REMEMBERS.name, Protocol::Dovecot, people)?;
        for round in 1..=self.options.rounds {
            if self.wants("P5") {
                for (case, in_flight) in
                    [("P5 cold, 16 in flight", 16), ("P5 cold, 256 in flight", 256)]
                {
                    self.bare_binds(case, round, in_flight, people)?;
                    for server in [REMEMBERS.name, "dovecot"] {
                        self.site.forget(server)?;
                        let load = load(case, Protocol::Dovecot, 1, in_flight);
                        self.drive(load, server, round, &Plan::each(0, people))?;
                    }
                }
            }
            if self.wants("P6") {
                self.site.forget(REMEMBERS.name)?;
                let load = load("P6 HTTP, cold, 16 connections", Protocol::Http, 16, 1);
                self.drive(load, REMEMBERS.name, round, &Plan::each(0, people))?;
            }
        }
        Ok(())
    }

    /// As many connections as Gatepost may open at most.
    fn bare_binds(
        &mut self,
        case: &str,
        round: u32,
        in_flight: u32,
        people: u64,
    ) -> anyhow::Result<()> {
        let counted = self.site.counted("slapd", Protocol::Dovecot)?;
        let before = counted.cpu()?;
        let done = ldap::bind_all(self.site.slapd_port, 0, people, in_flight.min(32))?;
        let cpu = counted.cpu()?.saturating_sub(before);
        self.add(Figures::new((case, "bare binds", round), done, cpu, counted.resident_kib()?));
        Ok(())
    }

    /// P5 with the entry known: nothing is fresh, so each login asks.
    fn known(&mut self) -> anyhow::Result<()> {
        if !self.wants("P5known") {
            return Ok(());
        }
        let people = self.cold_people();
        self.site.start_gatepost(ASKS)?;
        self.warm(ASKS.name, Protocol::Dovecot, people)?;
        for round in 1..=self.options.rounds {
            for (case, in_flight) in
                [("P5 entry known, 16 in flight", 16), ("P5 entry known, 256 in flight", 256)]
            {
                self.bare_binds(case, round, in_flight, people)?;
                let load = load(case, Protocol::Dovecot, 1, in_flight);
                self.drive(load, ASKS.name, round, &Plan::each(0, people))?;
            }
        }
        self.site.stop(ASKS.name)
    }

    fn remembered(&mut self) -> anyhow::Result<()> {
        let seconds = self.options.seconds;
        let remembered = Plan::repeated(REMEMBERED, seconds);
        let dovecot: &[&str] = &[floor(Protocol::Dovecot), REMEMBERS.name, "dovecot"];
        let saslauthd: &[&str] =
            &[floor(Protocol::Saslauthd), REMEMBERS.name, "saslauthd-cached", "saslauthd"];
        let cases = [
            (load("P1 remembered, 32 in flight", Protocol::Dovecot, 1, 32), dovecot),
            (load("P2 remembered, one at a time", Protocol::Dovecot, 1, 1), dovecot),
            (load("P3 remembered, 64 connections × 8", Protocol::Dovecot, 64, 8), dovecot),
            (load("P4 saslauthd, remembered, 8 at once", Protocol::Saslauthd, 8, 1), saslauthd),
            (
                load("P6 HTTP, remembered, 16 connections", Protocol::Http, 16, 1),
                &[floor(Protocol::Http), REMEMBERS.name],
            ),
            (
                load("P9 look-up, 32 in flight", Protocol::Socketmap, 1, 32),
                &[floor(Protocol::Socketmap), REMEMBERS.name],
            ),
        ];
        let wanted = |case: &str| case.split(' ').next().is_some_and(|id| self.wants(id));
        let cases: Vec<_> = cases.into_iter().filter(|(load, _)| wanted(load.case)).collect();
        if self.wants("P4") {
            self.site.start_saslauthd("saslauthd-cached")?;
            self.site.start_saslauthd("saslauthd")?;
        }
        for (load, servers) in &cases {
            for server in servers.iter().filter(|server| !server.starts_with("floor")) {
                // Gatepost has one memory for all doors.
                let protocol = match *server {
                    "gatepost" => Protocol::Dovecot,
                    _ => load.protocol,
                };
                self.warm(server, protocol, REMEMBERED)?;
            }
        }
        for round in 1..=self.options.rounds {
            for (load, servers) in &cases {
                for server in *servers {
                    self.drive(*load, server, round, &remembered)?;
                }
            }
        }
        Ok(())
    }

    /// What Dovecot's policy client asks, beside a constant answer of the same server.
    fn policy(&mut self) -> anyhow::Result<()> {
        if !self.wants("policy") {
            return Ok(());
        }
        let asked = Plan::repeated(REMEMBERED, self.options.seconds);
        for round in 1..=self.options.rounds {
            for (case, protocol) in [
                ("policy constant, 16 connections", Protocol::Ping),
                ("policy allow, 16 connections", Protocol::Allow),
                ("policy report, 16 connections", Protocol::Report),
            ] {
                for server in [floor(protocol), REMEMBERS.name] {
                    self.drive(load(case, protocol, 16, 1), server, round, &asked)?;
                }
            }
        }
        Ok(())
    }

    /// Right, wrong, unknown and new people at once, and a fixed rate.
    fn mixed(&mut self) -> anyhow::Result<()> {
        if !self.wants_one_of(&["mix", "rate"]) {
            return Ok(());
        }
        let servers = [REMEMBERS.name, "dovecot"];
        for server in servers {
            self.warm(server, Protocol::Dovecot, REMEMBERED)?;
        }
        for round in 1..=self.options.rounds {
            let mut mixed = Plan::repeated(REMEMBERED, self.options.seconds);
            if self.wants("mix") {
                let new_people = self.share(2000);
                let first_new = self.new_people(new_people)?;
                mixed.askers.mix =
                    Some(Mix { wrong: 4, unknown: 1, new: 1, first_new, new_people });
            }
            let mut rate = Plan::repeated(REMEMBERED, self.options.seconds);
            rate.rate = Some(10_000.0);
            for server in servers {
                let name = "mix: 94 right, 4 wrong, 1 unknown, 1 new of 100, 64 connections × 8";
                if self.wants("mix") {
                    self.drive(load(name, Protocol::Dovecot, 64, 8), server, round, &mixed)?;
                }
                if self.wants("rate") {
                    let name = "fixed rate: 10 000/s over 64 connections";
                    self.drive(load(name, Protocol::Dovecot, 64, 0), server, round, &rate)?;
                }
            }
        }
        Ok(())
    }

    /// P8: the next login of everybody plans their mailbox anew.
    fn template_changed(&mut self) -> anyhow::Result<()> {
        if !self.wants("P8") {
            return Ok(());
        }
        self.warm(REMEMBERS.name, Protocol::Dovecot, REMEMBERED)?;
        for round in 1..=self.options.rounds {
            self.site.change_template(REMEMBERS)?;
            let load = load("P8 template changed, next login", Protocol::Dovecot, 1, 1);
            self.drive(load, REMEMBERS.name, round, &Plan::each(0, REMEMBERED))?;
        }
        Ok(())
    }

    /// P13: a real IMAP LOGIN; what counts is the CPU of who judges it.
    fn imap(&mut self) -> anyhow::Result<()> {
        if !self.wants("P13") {
            return Ok(());
        }
        self.site.start_dovecot_on_gatepost()?;
        let servers = [ON_GATEPOST, "dovecot"];
        for server in servers {
            self.warm(server, Protocol::Imap, REMEMBERED)?;
        }
        for round in 1..=self.options.rounds {
            for server in servers {
                let load = load("P13 IMAP LOGIN, 8 at once", Protocol::Imap, 8, 1);
                let plan = Plan::repeated(REMEMBERED, self.options.seconds);
                self.drive(load, server, round, &plan)?;
            }
        }
        Ok(())
    }

    /// S1, S3, P12: as memory and store grow.
    fn sizes(&mut self) -> anyhow::Result<()> {
        if self.wants_one_of(&["S1", "S3"]) {
            self.restart()?;
            let resident = |compare: &Self| {
                let counted = compare.site.counted(REMEMBERS.name, Protocol::Dovecot)?;
                anyhow::Ok(mebibytes(counted.resident_kib()?))
            };
            let idle = resident(self)?;
            self.single("S1 idle", idle);
            let mut sizes = vec![1000, 100_000.min(self.options.people), self.options.people];
            sizes.dedup();
            for people in sizes {
                self.warm(REMEMBERS.name, Protocol::Dovecot, people)?;
                let full = resident(self)?;
                self.single(&format!("S1 {people}"), full);
                for round in 1..=self.options.rounds {
                    let case = format!("S3 remembered, 32 in flight, of {people} people");
                    self.spread(&case, people, round)?;
                }
            }
        }
        if self.wants("P12") {
            let people = self.options.people.min(100_000);
            if self.with_mailbox < people {
                self.warm(REMEMBERS.name, Protocol::Dovecot, people)?;
            }
            for _ in 0..self.options.rounds {
                let took = self.restart()?;
                self.single("P12 start to first answer, ms", took.as_secs_f64() * 1e3);
            }
        }
        Ok(())
    }

    /// Everybody in turn, so that most of memory is touched.
    fn spread(&mut self, case: &str, people: u64, round: u32) -> anyhow::Result<()> {
        let door = self.site.door(REMEMBERS.name, Protocol::Dovecot)?;
        let counted = self.site.counted(REMEMBERS.name, Protocol::Dovecot)?;
        let before = counted.cpu()?;
        let done = Drive {
            door: &door,
            askers: Askers::of(0, people),
            until: Until::Time(Duration::from_secs(self.options.seconds)),
            connections: 1,
            in_flight: 32,
            rate: None,
        }
        .run()?;
        let cpu = counted.cpu()?.saturating_sub(before);
        let id = (case, REMEMBERS.name, round);
        self.add(Figures::new(id, done, cpu, counted.resident_kib()?));
        Ok(())
    }

    /// Starts the daemon anew; says how long until the first login was answered.
    pub fn restart(&mut self) -> anyhow::Result<Duration> {
        self.site.stop(REMEMBERS.name)?;
        let started = Instant::now();
        self.site.start_gatepost(REMEMBERS)?;
        let mut connection = Connection::open(&self.site.door(REMEMBERS.name, Protocol::Dovecot)?)?;
        connection.ask(1, Asker::Right(0))?;
        connection.flush()?;
        let heard = connection.next()?;
        ensure!(heard.said == Said::Accepted, "the first login was answered with {heard:?}");
        Ok(started.elapsed())
    }

    /// Makes all mailboxes that are not there yet.
    pub fn everybody_has_a_mailbox(&mut self) -> anyhow::Result<()> {
        if self.with_mailbox < self.options.people {
            self.warm(REMEMBERS.name, Protocol::Dovecot, self.options.people)?;
        }
        Ok(())
    }

    pub fn single(&mut self, name: &str, value: f64) {
        eprintln!("{name}: {value:.1}");
        self.single.entry(name.to_owned()).or_default().push(value);
    }

    pub fn rounds(&self) -> u32 {
        self.options.rounds
    }
}

/// Who is driven, how long, and at which rate.
#[derive(Clone, Copy, Debug)]
struct Plan {
    askers: Askers,
    until: Until,
    rate: Option<f64>,
}

impl Plan {
    fn each(first: u64, people: u64) -> Self {
        Self { askers: Askers::of(first, people), until: Until::Turns(people), rate: None }
    }

    fn repeated(people: u64, seconds: u64) -> Self {
        let until = Until::Time(Duration::from_secs(seconds));
        Self { askers: Askers::of(0, people), until, rate: None }
    }
}

/// Latencies of something that is no drive: the median, in milliseconds.
pub fn median_ms(latencies: &mut [Duration]) -> f64 {
    latencies.sort_unstable();
    quantile(latencies, 500) / 1e3
}

/// For rates.
pub fn per_second(number: usize, took: Duration) -> f64 {
    count(number) / took.as_secs_f64()
}
