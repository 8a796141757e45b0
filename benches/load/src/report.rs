//! The tables.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::Context;

use crate::compare::Compare;
use crate::figures::{Figures, median};
use crate::site::ON_GATEPOST;
use crate::targets::{self, figure, ratio};

const BEGIN: &str = "<!-- benches/load/run: begin -->\n";
const END: &str = "<!-- benches/load/run: end -->\n";

/// Tables of targets and of all figures, as markdown.
pub fn text(compare: &Compare) -> anyhow::Result<String> {
    let mut text = String::from("| id | what | measured | target | |\n|---|---|--:|--:|---|\n");
    for targets::Line { id, what, measured, target, is_met } in targets::lines(compare) {
        let word = if is_met { "met" } else { "**missed**" };
        writeln!(text, "| {id} | {what} | {measured} | {target} | {word} |")?;
    }
    text += "\n| case | server | CPU ÷ Gatepost's | rate ÷ Gatepost's | CPU µs | per second | p50 µs | p99 µs | p99.9 µs | MiB |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    let mut done: Vec<(&str, &str)> = Vec::new();
    for Figures { case, server, .. } in &compare.figures {
        if !done.contains(&(case, server)) {
            done.push((case, server));
            row(&compare.figures, case, server, &mut text)?;
        }
    }
    for note in &compare.notes {
        write!(text, "\n{note}\n")?;
    }
    for (name, values) in &compare.single {
        let middle = median(values.iter().copied()).map(figure).unwrap_or_default();
        let lead = if Some(name) == compare.single.keys().next() { "\n" } else { "" };
        writeln!(text, "{lead}* {name}: {middle}")?;
    }
    writeln!(text, "\n{}", circumstances(compare))?;
    Ok(text)
}

fn row(figures: &[Figures], case: &str, server: &str, text: &mut String) -> anyhow::Result<()> {
    let of = || figures.iter().filter(|figures| figures.case == case && figures.server == server);
    let middle =
        |field: fn(&Figures) -> f64| median(of().map(field)).map(figure).context("no rounds");
    // Where Gatepost is not asked under its own name, it is what judges for another.
    let asked = |name: &&str| figures.iter().any(|it| it.case == case && it.server == *name);
    let ours = ["gatepost", "gatepost-asks", ON_GATEPOST].into_iter().find(asked);
    let beside = |field: fn(&Figures) -> f64| {
        let ratio = ours
            .filter(|ours| *ours != server)
            .and_then(|ours| ratio(figures, case, (server, ours), field));
        ratio.map_or("–".to_owned(), figure)
    };
    let later: u64 = of().map(|figures| figures.later).sum();
    let later = if later > 0 { format!(" ({later} told later)") } else { String::new() };
    writeln!(
        text,
        "| {case}{later} | {server} | {} | {} | {} | {} | {} | {} | {} | {} |",
        beside(|figures| figures.cpu),
        beside(|figures| figures.rate),
        middle(|figures| figures.cpu)?,
        middle(|figures| figures.rate)?,
        middle(|figures| figures.p50)?,
        middle(|figures| figures.p99)?,
        middle(|figures| figures.p999)?,
        middle(|figures| figures.resident)?,
    )?;
    Ok(())
}

fn circumstances(compare: &Compare) -> String {
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let number =
            text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        number.unwrap_or("?").to_owned()
    };
    let slapd = version("/usr/sbin/slapd", "-VV");
    let dovecot = version("/usr/sbin/dovecot", "--version");
    let saslauthd = version("/usr/sbin/saslauthd", "-v");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let options = &compare.options;
    format!(
        "{} people, {} rounds of {} s; {cpus} CPUs, {}; slapd {slapd}, Dovecot {dovecot}, saslauthd {saslauthd}.",
        options.people,
        options.rounds,
        options.seconds,
        std::env::consts::ARCH
    )
}

/// Puts the tables between the marks of docs/PERFORMANCE.md, and the chart beside it.
pub fn write_docs(tables: &str, chart: &str) -> anyhow::Result<()> {
    let path = "docs/PERFORMANCE.md";
    let page = fs::read_to_string(path).context(path)?;
    let (before, rest) = page.split_once(BEGIN).context("docs/PERFORMANCE.md has no begin mark")?;
    let (_, after) = rest.split_once(END).context("docs/PERFORMANCE.md has no end mark")?;
    fs::write(path, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?;
    Ok(fs::write("docs/performance.svg", chart)?)
}
