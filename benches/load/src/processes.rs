//! CPU time and memory of a server: one process, or a master with children.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Processes whose work is counted.
#[derive(Clone, Debug)]
pub enum Counted {
    /// A process and all that descend from it.
    Tree(u32),
    /// The descendants with this name.
    Named(u32, &'static str),
    /// All of these.
    All(Vec<Counted>),
}

#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    parent: u32,
    name: String,
    /// User and system time, that of children it waited for included.
    ticks: u64,
}

impl Counted {
    /// CPU time used so far. The kernel counts in 10 ms, so measure a second or more.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        // proc(5): in clock ticks, of which a second has 100 on Linux.
        let ticks: u64 = self.processes()?.iter().map(|process| process.ticks).sum();
        Ok(Duration::from_millis(10 * ticks))
    }

    /// Resident memory now.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for Process { pid, .. } in self.processes()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let words = line.context("no VmRSS")?.trim();
            sum += words.trim_end_matches(" kB").parse::<u64>()?;
        }
        Ok(sum)
    }

    /// The process to look at more closely.
    pub fn root(&self) -> u32 {
        match self {
            Self::Tree(root) | Self::Named(root, _) => *root,
            Self::All(parts) => parts.first().map_or(0, Self::root),
        }
    }

    fn processes(&self) -> anyhow::Result<Vec<Process>> {
        match self {
            Self::Tree(root) => tree(*root),
            Self::Named(root, name) => {
                let mut processes = tree(*root)?;
                processes.retain(|process| process.name == *name);
                anyhow::ensure!(!processes.is_empty(), "no process {name} below {root}");
                Ok(processes)
            }
            Self::All(parts) => {
                let parts: Vec<_> =
                    parts.iter().map(Self::processes).collect::<anyhow::Result<_>>()?;
                Ok(parts.concat())
            }
        }
    }
}

fn tree(root: u32) -> anyhow::Result<Vec<Process>> {
    let mut others = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Ok(pid) = entry?.file_name().to_string_lossy().parse() {
            // It may have ended meanwhile.
            others.extend(Process::read(pid));
        }
    }
    let mut tree = Vec::new();
    let mut wanted = vec![root];
    while let Some(pid) = wanted.pop() {
        wanted.extend(others.iter().filter(|other| other.parent == pid).map(|other| other.pid));
        tree.extend(
            others.iter().position(|other| other.pid == pid).map(|at| others.swap_remove(at)),
        );
    }
    anyhow::ensure!(!tree.is_empty(), "no process {root}");
    Ok(tree)
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc(5): the name, field 2, is in brackets and may hold anything.
        let (before, after_name) = stat.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = (14..=17).map(field).sum::<Option<u64>>()?;
        Some(Self { pid, parent: u32::try_from(field(4)?).ok()?, name: name.to_owned(), ticks })
    }
}
