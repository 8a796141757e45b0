//! The targets, each beside what was measured. Ratios are made within a round, because machines are noisy; their median
//! counts.

use crate::compare::Compare;
use crate::figures::{Figures, median};
use crate::site::ON_GATEPOST;

/// Must the figure be at least or at most the target?
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the table of targets; `None`: not measured in this run.
#[derive(Debug)]
pub struct Line {
    pub id: &'static str,
    pub what: String,
    pub measured: String,
    pub target: String,
    pub is_met: bool,
}

struct Lines<'a> {
    compare: &'a Compare,
    lines: Vec<Line>,
}

/// What mailcow and Nauthilus did on a machine like this, one login a second per request: measured before, not by this
/// program.
const NAUTHILUS_REMEMBERED: f64 = 2300.0;
const NAUTHILUS_COLD: f64 = 500.0;
const MAILCOW: f64 = 206.0;

const CPU: fn(&Figures) -> f64 = |figures| figures.cpu;
const RATE: fn(&Figures) -> f64 = |figures| figures.rate;
const P99: fn(&Figures) -> f64 = |figures| figures.p99;

const GATEPOST: &str = "gatepost";
const DOVECOT: &str = "dovecot";
const FLOOR: &str = "floor-dovecot";

/// The lines for whatever was measured.
pub fn lines(compare: &Compare) -> Vec<Line> {
    let mut lines = Lines { compare, lines: Vec::new() };
    lines.remembered();
    lines.cold();
    lines.other_doors();
    lines.first_logins();
    lines.sizes();
    lines.lines
}

impl Lines<'_> {
    fn remembered(&mut self) {
        use Bound::{AtLeast, AtMost};
        let [p1, p2, p3] = [
            "P1 remembered, 32 in flight",
            "P2 remembered, one at a time",
            "P3 remembered, 64 connections × 8",
        ];
        self.ratio("P1", "Dovecot's CPU ÷ ours", (p1, DOVECOT, GATEPOST, CPU), AtLeast(12.0));
        self.ratio("P1", "our CPU ÷ the floor's", (p1, GATEPOST, FLOOR, CPU), AtMost(7.0));
        self.value("P1", "CPU µs per login", (p1, GATEPOST, CPU), AtMost(2.5));
        self.ratio("P2", "Dovecot's CPU ÷ ours", (p2, DOVECOT, GATEPOST, CPU), AtLeast(6.0));
        self.value("P2", "CPU µs per login", (p2, GATEPOST, CPU), AtMost(8.0));
        self.ratio("P3", "Dovecot's CPU ÷ ours", (p3, DOVECOT, GATEPOST, CPU), AtLeast(12.0));
        self.ratio("P3", "our p99 ÷ Dovecot's", (p3, GATEPOST, DOVECOT, P99), AtMost(0.1));
    }

    fn cold(&mut self) {
        for in_flight in [16, 256] {
            let case = format!("P5 cold, {in_flight} in flight");
            let what = format!("entry unknown, {in_flight} in flight: our rate ÷ Dovecot's");
            self.ratio("P5", &what, (&case, GATEPOST, DOVECOT, RATE), Bound::AtLeast(2.0));
        }
        for in_flight in [16, 256] {
            let case = format!("P5 entry known, {in_flight} in flight");
            let what = format!("entry known, {in_flight} in flight: our rate ÷ bare binds'");
            let asks = crate::site::ASKS.name;
            self.ratio("P5", &what, (&case, asks, "bare binds", RATE), Bound::AtLeast(0.5));
        }
    }

    fn other_doors(&mut self) {
        use Bound::{AtLeast, AtMost};
        let p4 = "P4 saslauthd, remembered, 8 at once";
        let what = "our CPU ÷ that of saslauthd -c";
        self.ratio("P4", what, (p4, GATEPOST, "saslauthd-cached", CPU), AtMost(0.5));
        let p6 = "P6 HTTP, remembered, 16 connections";
        self.value("P6", "CPU µs per login", (p6, GATEPOST, CPU), AtMost(20.0));
        let nauthilus = 15.0 * NAUTHILUS_REMEMBERED;
        self.value("P6", "logins/s (15 × Nauthilus')", (p6, GATEPOST, RATE), AtLeast(nauthilus));
        self.value(
            "P6",
            "logins/s (200 × mailcow's)",
            (p6, GATEPOST, RATE),
            AtLeast(200.0 * MAILCOW),
        );
        let cold = ("P6 HTTP, cold, 16 connections", GATEPOST, RATE);
        self.value("P6", "cold logins/s (5 × Nauthilus')", cold, AtLeast(5.0 * NAUTHILUS_COLD));
        let p9 = ("P9 look-up, 32 in flight", GATEPOST, CPU);
        self.value("P9", "CPU µs per look-up", p9, AtMost(2.0));
        let (p13, ours) = ("P13 IMAP LOGIN, 8 at once", ON_GATEPOST);
        self.ratio("P13", "CPU of Dovecot's auth ÷ ours", (p13, DOVECOT, ours, CPU), AtLeast(10.0));
        self.ratio("P13", "our rate ÷ Dovecot's", (p13, ours, DOVECOT, RATE), AtLeast(1.0));
    }

    fn first_logins(&mut self) {
        let added =
            median(self.of("P7 first login, one at a time", GATEPOST).filter_map(|first| {
                let mut colds = self.of("P7 the same people, cold, one at a time", GATEPOST);
                Some((first.p50 - colds.find(|cold| cold.round == first.round)?.p50) / 1e3)
            }));
        let what = "ms that a mailbox adds to the median cold login";
        self.add("P7", what, added, Bound::AtMost(5.0));
        let planned =
            median(self.of("P8 template changed, next login", GATEPOST).map(|it| it.p50 / 1e3));
        self.add(
            "P8",
            "ms for the next login after a change of the template",
            planned,
            Bound::AtMost(5.0),
        );
        let ratio = self.single("P11 ratio");
        self.add("P11", "gatepost-checkpassword ÷ (true + round trip)", ratio, Bound::AtMost(1.3));
        let start = self.single("P12 start to first answer, ms");
        self.add("P12", "ms from start to the first answer", start, Bound::AtMost(100.0));
    }

    fn sizes(&mut self) {
        let idle = self.single("S1 idle");
        self.add("S1", "MiB resident, idle", idle, Bound::AtMost(20.0));
        let people = self.compare.options.people;
        for (size, most) in [(100_000, 110.0), (1_000_000, 900.0)] {
            let full = self.single(&format!("S1 {size}"));
            self.add(
                "S1",
                &format!("MiB resident, {size} people remembered"),
                full,
                Bound::AtMost(most),
            );
        }
        for size in [100_000, 1_000_000].into_iter().filter(|size| *size <= people) {
            let small = self.cpu_with(1000);
            let ratio = self.cpu_with(size).zip(small).map(|(large, small)| large / small);
            let what = format!("CPU per login with {size} people ÷ with 1000");
            self.add("S3", &what, ratio, Bound::AtMost(1.2));
        }
        let worst = self.compare.single.get("storm: most connections at slapd");
        let worst = worst.and_then(|values| values.iter().copied().reduce(f64::max));
        self.add("storm", "most connections at the directory", worst, Bound::AtMost(35.0));
    }

    fn cpu_with(&self, people: u64) -> Option<f64> {
        let case = format!("S3 remembered, 32 in flight, of {people} people");
        median(self.of(&case, GATEPOST).map(|figures| figures.cpu))
    }

    fn value(
        &mut self,
        id: &'static str,
        what: &str,
        of: (&str, &str, fn(&Figures) -> f64),
        bound: Bound,
    ) {
        let (case, server, field) = of;
        let measured = median(self.of(case, server).map(field));
        self.add(id, what, measured, bound);
    }

    /// One server's figure by another's.
    fn ratio(
        &mut self,
        id: &'static str,
        what: &str,
        (case, above, below, field): (&str, &str, &str, fn(&Figures) -> f64),
        bound: Bound,
    ) {
        let ratio = ratio(&self.compare.figures, case, (above, below), field);
        self.add(id, what, ratio, bound);
    }

    fn of(&self, case: &str, server: &str) -> impl Iterator<Item = &Figures> {
        self.compare
            .figures
            .iter()
            .filter(move |figures| figures.case == case && figures.server == server)
    }

    fn single(&self, name: &str) -> Option<f64> {
        median(self.compare.single.get(name)?.iter().copied())
    }

    fn add(&mut self, id: &'static str, what: &str, measured: Option<f64>, bound: Bound) {
        let Some(measured) = measured else { return };
        let (target, is_met) = match bound {
            Bound::AtLeast(least) => (format!("≥ {}", figure(least)), measured >= least),
            Bound::AtMost(most) => (format!("≤ {}", figure(most)), measured <= most),
        };
        self.lines.push(Line {
            id,
            what: what.to_owned(),
            measured: figure(measured),
            target,
            is_met,
        });
    }
}

/// The median over the rounds of one server's figure by another's.
pub fn ratio(
    figures: &[Figures],
    case: &str,
    (above, below): (&str, &str),
    field: fn(&Figures) -> f64,
) -> Option<f64> {
    let is = |it: &&Figures, server: &str| it.case == case && it.server == server;
    median(figures.iter().filter(|it| is(it, above)).filter_map(|this| {
        let mut peers = figures.iter().filter(|it| is(it, below));
        Some(field(this) / field(peers.find(|peer| peer.round == this.round)?))
    }))
}

/// Three digits are enough.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 1.0 => format!("{value:.2}"),
        small if small < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
