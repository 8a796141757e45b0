//! What one drive measured.

use std::time::Duration;

use crate::client::Tally;

/// One drive.
#[derive(Clone, Debug)]
pub struct Figures {
    pub case: String,
    pub server: String,
    pub round: u32,
    /// Answers a second.
    pub rate: f64,
    /// CPU time of the server's processes per login, in microseconds.
    pub cpu: f64,
    /// From the request (with a fixed rate: from when it was due) to the answer, in microseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Resident memory of the server afterwards, in MiB.
    pub resident: f64,
    /// How many were answered "later".
    pub later: u64,
}

impl Figures {
    /// Sums up a drive.
    pub fn new(
        (case, server, round): (&str, &str, u32),
        (mut tally, took): (Tally, Duration),
        cpu: Duration,
        resident_kib: u64,
    ) -> Self {
        let count = count(tally.latencies.len());
        tally.latencies.sort_unstable();
        let at = |per_mille| quantile(&tally.latencies, per_mille);
        Self {
            case: case.to_owned(),
            server: server.to_owned(),
            round,
            rate: count / took.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            p50: at(500),
            p99: at(990),
            p999: at(999),
            resident: mebibytes(resident_kib),
            later: tally.later,
        }
    }
}

/// In microseconds.
pub fn quantile(sorted: &[Duration], per_mille: usize) -> f64 {
    let place = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default().as_secs_f64() * 1e6
}

pub fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

pub fn mebibytes(kibibytes: u64) -> f64 {
    count(usize::try_from(kibibytes).unwrap_or(usize::MAX)) / 1024.0
}

pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
