//! What one drive measured, as a line of words that `report` reads again.

use std::fmt;
use std::time::Duration;

use anyhow::Context;

/// One drive.
#[derive(Clone, Debug)]
pub struct Figures {
    pub case: String,
    pub server: String,
    pub round: u32,
    pub logins: u64,
    pub rate: f64,
    /// CPU time of the server's processes per login, in microseconds.
    pub cpu: f64,
    /// From the request to the answer, in microseconds.
    pub median: f64,
    pub p99: f64,
}

impl Figures {
    /// Sums up a drive; sorts the latencies.
    pub fn new(
        (case, server, round): (&str, &str, u32),
        took: Duration,
        cpu: Duration,
        latencies: &mut [Duration],
    ) -> Self {
        latencies.sort_unstable();
        let logins = latencies.len();
        let at = |share: usize| {
            let latency = latencies.get((logins * share / 100).min(logins.saturating_sub(1)));
            latency.copied().unwrap_or_default().as_secs_f64() * 1e6
        };
        let count = u32::try_from(logins).map_or(f64::INFINITY, f64::from);
        Self {
            case: case.to_owned(),
            server: server.to_owned(),
            round,
            logins: u64::try_from(logins).unwrap_or(u64::MAX),
            rate: count / took.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            median: at(50),
            p99: at(99),
        }
    }

    /// Reads a line that `Display` wrote.
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split('\t');
        let mut word = || words.next().with_context(|| format!("line cut short: {line}"));
        Ok(Self {
            case: word()?.to_owned(),
            server: word()?.to_owned(),
            round: word()?.parse()?,
            logins: word()?.parse()?,
            rate: word()?.parse()?,
            cpu: word()?.parse()?,
            median: word()?.parse()?,
            p99: word()?.parse()?,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, server, round, logins, rate, cpu, median, p99 } = self;
        write!(
            formatter,
            "{case}\t{server}\t{round}\t{logins}\t{rate:.0}\t{cpu:.3}\t{median:.1}\t{p99:.1}"
        )
    }
}
