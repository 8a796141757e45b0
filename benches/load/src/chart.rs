//! The chart: CPU per login by server, bars on a logarithmic scale.

use std::fmt::Write as _;

use crate::figures::{Figures, median};

/// What is drawn, and whose colour is whose. Red would say "bad"; these are told apart by the colour-blind too.
const CASES: [&str; 7] = ["P1 ", "P2 ", "P3 ", "P4 ", "P5 cold, 16", "P6 HTTP, rem", "P9 "];
const LEFT: f64 = 250.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 15.0;
/// The scale: from a tenth of a microsecond to 10 ms.
const LEAST: f64 = 0.1;
const DECADES: u32 = 5;

pub fn svg(figures: &[Figures]) -> String {
    let mut body = String::new();
    let mut y = 40.0;
    for start in CASES {
        let mut servers: Vec<(&str, &str)> = Vec::new();
        for Figures { case, server, .. } in figures {
            let is_server = server != "bare binds" && case.starts_with(start);
            if is_server && !servers.contains(&(case, server)) {
                servers.push((case, server));
            }
        }
        if let Some((case, _)) = servers.first() {
            let _ = writeln!(body, r#"<text x="8" y="{:.0}" class="case">{case}</text>"#, y + 11.0);
            y += 18.0;
        }
        for (case, server) in &servers {
            let of = figures.iter().filter(|it| it.case == *case && it.server == *server);
            let cpu = median(of.map(|figures| figures.cpu)).unwrap_or_default();
            bar(&mut body, y, server, cpu);
            y += BAR + 3.0;
        }
        y += if servers.is_empty() { 0.0 } else { 10.0 };
    }
    frame(&body, y)
}

fn bar(body: &mut String, y: f64, server: &str, cpu: f64) {
    let colour = match server {
        "gatepost" => "#0072b2",
        floor if floor.starts_with("floor") => "#999999",
        "dovecot" => "#e69f00",
        _ => "#cc79a7",
    };
    let width = (WIDTH * (cpu.max(LEAST) / LEAST).log10() / f64::from(DECADES)).max(1.0);
    let (middle, label) = (y + BAR - 4.0, server.split("-dovecot").next().unwrap_or(server));
    let _ = writeln!(
        body,
        r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{label}</text><rect x="{LEFT}" y="{y:.0}" width="{width:.1}" height="{BAR}" fill="{colour}"/><text x="{:.0}" y="{middle:.0}">{} µs</text>"#,
        LEFT - 6.0,
        LEFT + width + 5.0,
        crate::targets::figure(cpu),
    );
}

fn frame(body: &str, bottom: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>.case {{ font-weight: bold }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">CPU time of the server per login (µs, logarithmic scale)</text>\n",
        bottom + 30.0
    );
    for decade in 0..=DECADES {
        let x = LEFT + WIDTH * f64::from(decade) / f64::from(DECADES);
        let value = LEAST * 10_f64.powi(i32::try_from(decade).unwrap_or(0));
        let _ = writeln!(
            svg,
            r##"<line x1="{x:.0}" y1="32" x2="{x:.0}" y2="{bottom:.0}" stroke="#dddddd"/><text x="{x:.0}" y="{:.0}" text-anchor="middle">{}</text>"##,
            bottom + 16.0,
            crate::targets::figure(value),
        );
    }
    svg + body + "</svg>\n"
}
