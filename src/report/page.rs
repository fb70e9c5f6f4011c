//! Pages for a terminal: at most 100 columns, the worst node first.

use super::{Diff, NodeRow, OutputRow, Report};
use crate::note::NoteKind;

const WIDTH: usize = 100;
const ROWS: usize = 20;

/// `text` in at most `width` characters, shortened in the middle.
pub fn shorten(text: &str, width: usize) -> String {
    let n = text.chars().count();
    if n <= width {
        return text.to_string();
    }
    let head = (width - 1) / 2;
    let tail = width - 1 - head;
    text.chars().take(head).chain(['…']).chain(text.chars().skip(n - tail)).collect()
}

/// One line, cut to the page's width.
fn line(text: String) -> String {
    shorten(&text, WIDTH) + "\n"
}

pub fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

pub fn report(r: &Report) -> String {
    let mut page = String::new();
    let (before, after) = (r.input.bytes + r.input.data_bytes, r.output.bytes + r.output.data_bytes);
    page += &line(format!("{}  {} (input {}), {:.1} s", r.output.path, size(after), size(before), r.seconds));
    if let Some(t) = &r.tail {
        page += &line(format!("{}  {} what was cut off, in float, to be run behind it", t.path, size(t.bytes + t.data_bytes)));
    }
    let c = &r.coverage;
    page += &line(format!(
        "coverage    multiply-adds: {} in 8 bits, {} in 16, {} weights only, {} float",
        percent(c.cov8),
        percent(c.cov16),
        percent(c.w_only),
        percent(c.float)
    ));
    page += &line(format!("            activations:   {} in 8 bits, {} in 16", percent(c.act8), percent(c.act16)));
    if !r.check_line.is_empty() {
        page += &line(format!("check       target {}: {}", r.target, r.check_line));
    }
    page += &outputs(&r.outputs, r.is_random());
    if let Some(e) = &r.eval {
        page += &line(format!("eval        {} converted, {} float", e.converted, e.reference));
    }
    if let Some(why) = &r.unvalidated_because {
        page += &line(format!("unvalidated: {why}"));
    }
    page += &remarks(r);
    page += &nodes(&r.nodes, r.is_random());
    page
}

const MEANS_NOTHING: &str = "  (random data: means nothing)";

fn outputs(rows: &[OutputRow], random: bool) -> String {
    let mut page = String::new();
    for o in rows {
        let mut text = match o.equal {
            Some(share) => format!("{} equal", percent(share)),
            None => format!("SQNR {}, cosine {:.5}", o.sqnr_db, o.cosine),
        };
        if o.nan > 0 {
            text += &format!(", {} NaN", o.nan);
        }
        if let Some(a) = o.accuracy {
            text += &format!(", top-1 {} of {}", percent(a.converted), percent(a.reference));
        } else if let Some(a) = o.agreement {
            text += &format!(", agreement {}", percent(a));
        }
        if o.equal.is_none() {
            text += &format!(", largest error {:.3}", o.largest_error);
        }
        if random {
            text += MEANS_NOTHING;
        }
        // The name takes what the figures leave.
        let room = WIDTH.saturating_sub(14 + text.chars().count()).max(8);
        page += &line(format!("output      {}: {text}", shorten(&o.name, room)));
        for p in &o.parts {
            let mut text = format!("SQNR {}, cosine {:.5}", p.sqnr_db, p.cosine);
            if let Some(a) = p.agreement {
                text += &format!(", agreement {}", percent(a));
            }
            if random {
                text += MEANS_NOTHING;
            }
            let room = WIDTH.saturating_sub(21 + text.chars().count()).max(8);
            page += &line(format!("            its part {}: {text}", shorten(&p.name, room)));
        }
    }
    page
}

/// How often something was declined or fell back, and the first reasons.
fn remarks(r: &Report) -> String {
    if r.declined + r.fell_back == 0 {
        return String::new();
    }
    let mut page = line(format!("{} declined, {} fell back", r.declined, r.fell_back));
    let told = r.notes.iter().filter(|n| n.kind != NoteKind::Changed);
    told.clone().take(3).for_each(|n| page += &line(format!("  {n}")));
    let more = told.count().saturating_sub(3);
    if more > 0 {
        page += &line(format!("  and {more} more in the report"));
    }
    page
}

fn nodes(rows: &[NodeRow], random: bool) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut page = format!("\n{}{}\n", "node, worst first", if random { MEANS_NOTHING } else { "" });
    page += &format!("{:<46}  {:<18}  {:>8}  {:>8}  {:>7}\n", "", "op", "SQNR", "own", "clipped");
    for r in rows.iter().take(ROWS) {
        let own = r.own_sqnr_db.map_or("—".to_string(), |d| d.to_string());
        let clipped = r.clipped.map_or("—".to_string(), percent);
        page += &line(format!("{:<46}  {:<18}  {:>8}  {own:>8}  {clipped:>7}", shorten(&r.name, 46), shorten(&r.op, 18), r.sqnr_db.to_string()));
    }
    if rows.len() > ROWS {
        page += &line(format!("and {} more in the report", rows.len() - ROWS));
    }
    page
}

pub fn diff(d: &Diff) -> String {
    let mut page = line(format!("{} against {}, {} samples", d.b, d.a, d.samples));
    page += &outputs(&d.outputs, d.random);
    page += &line(format!("coverage    multiply-adds in 8 bits: {} and {}", percent(d.coverage.0.cov8), percent(d.coverage.1.cov8)));
    page += &nodes(&d.nodes, d.random);
    page
}

#[cfg(test)]
mod tests {
    use super::super::{Coverage, Db};
    use super::*;

    fn full() -> Report {
        let mut r = Report::new("0");
        r.output.path = "a/very/".repeat(20) + "long.onnx";
        r.coverage = Coverage { cov8: 1.0, act8: 0.95, ..Coverage::default() };
        let output = OutputRow {
            name: "an output with a name of some length indeed".into(),
            sqnr_db: Db(31.25),
            cosine: 0.9991,
            largest_error: 123.456,
            mean_error: 0.0,
            nan: 0,
            agreement: Some(0.98),
            accuracy: None,
            equal: None,
            samples: 3,
            parts: vec![],
        };
        r.outputs = vec![output];
        r.nodes = (0..30)
            .map(|i| NodeRow {
                name: format!("/a/node/with/a/name/that/is/longer/than/any/column/number{i}"),
                op: "BatchNormalization".into(),
                output: "y".into(),
                sqnr_db: Db(i as f64),
                own_sqnr_db: Some(Db(f64::INFINITY)),
                clipped: Some(0.001),
                dead_codes: None,
                scheme: None,
            })
            .collect();
        r
    }

    #[test]
    fn pages_fit_the_terminal_and_say_the_worst_first() {
        let page = report(&full());
        assert!(page.lines().all(|l| l.chars().count() <= WIDTH), "{page}");
        assert!(page.contains("SQNR 31.2 dB") && page.contains("coverage") && page.contains("and 10 more"), "{page}");
        assert!(page.find("0.0 dB").unwrap() < page.find("1.0 dB").unwrap());
    }

    #[test]
    fn figures_on_random_data_are_said_to_mean_nothing() {
        let mut r = full();
        r.data = Some(super::super::DataRow { random: true, ..Default::default() });
        assert_eq!(report(&r).matches("means nothing").count(), 2);
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.00 GiB");
    }

    #[test]
    fn names_are_shortened_in_the_middle() {
        assert_eq!(shorten("abcdefghij", 5), "ab…ij");
        assert_eq!(shorten("abc", 5), "abc");
    }
}
