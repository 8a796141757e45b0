//! The table: medians over the rounds. Ratios are made within a round, because machines are noisy, and their median
//! is shown.

use std::fmt::Write as _;

use anyhow::Context;

use crate::figures::Figures;

/// Makes a table of lines of figures, in the order in which cases first appear.
pub fn table(lines: &str) -> anyhow::Result<String> {
    let figures = lines.lines().map(Figures::parse).collect::<anyhow::Result<Vec<_>>>()?;
    let mut text = String::from(
        "| case | server | logins/s | CPU µs/login | p50 µs | p99 µs | CPU: Dovecot's ÷ this | rate: this ÷ Dovecot's | CPU: this ÷ floor's |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let mut done: Vec<(&str, &str)> = Vec::new();
    for Figures { case, server, .. } in &figures {
        if !done.contains(&(case, server)) {
            done.push((case, server));
            row(&figures, case, server, &mut text)?;
        }
    }
    first_login(&figures, &mut text)?;
    Ok(text)
}

fn row(figures: &[Figures], case: &str, server: &str, text: &mut String) -> anyhow::Result<()> {
    let middle = |value: fn(&Figures) -> f64| median(of(figures, case, server).map(value));
    let beside = |peer: &str, value: &dyn Fn(&Figures, &Figures) -> f64| {
        let pairs = of(figures, case, server).filter_map(|this| {
            let peer = of(figures, case, peer).find(|peer| peer.round == this.round)?;
            Some(value(this, peer))
        });
        median(pairs)
            .filter(|_| peer != server)
            .map_or("–".to_owned(), |ratio| format!("{ratio:.1}"))
    };
    writeln!(
        text,
        "| {case} | {server} | {:.0} | {:.2} | {:.0} | {:.0} | {} | {} | {} |",
        middle(|figures| figures.rate).context("no rounds")?,
        middle(|figures| figures.cpu).context("no rounds")?,
        middle(|figures| figures.median).context("no rounds")?,
        middle(|figures| figures.p99).context("no rounds")?,
        beside("dovecot", &|this, peer| peer.cpu / this.cpu),
        beside("dovecot", &|this, peer| this.rate / peer.rate),
        beside("floor", &|this, peer| this.cpu / peer.cpu),
    )?;
    Ok(())
}

/// P7: what making the mailbox adds to the median login that must ask the directory anyhow.
fn first_login(figures: &[Figures], text: &mut String) -> anyhow::Result<()> {
    let added = of(figures, "first login, one at a time", "gatepost").filter_map(|first| {
        let mut colds = of(figures, "P5 cold, one at a time", "gatepost");
        Some(first.median - colds.find(|cold| cold.round == first.round)?.median)
    });
    if let Some(added) = median(added) {
        writeln!(text, "\nP7: making the mailbox adds {added:.0} µs to the median cold login.")?;
    }
    Ok(())
}

fn of<'a>(
    figures: &'a [Figures],
    case: &'a str,
    server: &'a str,
) -> impl Iterator<Item = &'a Figures> {
    figures.iter().filter(move |figures| figures.case == case && figures.server == server)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
