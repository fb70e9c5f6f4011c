//! The report as one page for a browser: no script, no other file, nothing fetched.

use super::page::{percent, size};
use super::{Coverage, Diff, NodeRow, OutputRow, Report};
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}\
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
pre{background:#f5f5f5;padding:1rem;overflow-x:auto}.bad{color:#a40000;font-weight:bold}\
.bar{display:inline-block;height:.6rem;background:#4a7ebb;vertical-align:middle}\
summary{cursor:pointer;font-weight:bold;margin-top:1rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}th,td{border-color:#444}pre{background:#262626}.bad{color:#ff7b7b}}";

const MEANS_NOTHING: &str = "The data was made up: no figure on this page means anything.";

/// The page of a conversion. `failures`: why the result is below the gate.
pub fn report(r: &Report, failures: &[String]) -> String {
    let mut body = String::new();
    failures.iter().for_each(|f| body += &bad(&format!("Below the gate: {f}.")));
    if r.is_random() {
        body += &bad(MEANS_NOTHING);
    }
    if let Some(why) = &r.unvalidated_because {
        body += &bad(&format!("Not validated: {why}."));
    }
    let (before, after) = (r.input.bytes + r.input.data_bytes, r.output.bytes + r.output.data_bytes);
    let mut facts = vec![
        pair("input", &format!("{}, {}, SHA-256 {}", r.input.path, size(before), r.input.sha256)),
        pair("output", &format!("{}, {}, SHA-256 {}", r.output.path, size(after), r.output.sha256)),
        pair("recipe, target", &format!("{}, {}", r.recipe.name, r.target)),
    ];
    facts.extend(r.tail.iter().map(|t| pair("cut off", &format!("{}, {}, SHA-256 {}", t.path, size(t.bytes + t.data_bytes), t.sha256))));
    if let Some(d) = &r.data {
        facts.push(pair("data", &format!("{}: {} samples calibrated, {} judged", d.path, d.calibration.len(), d.validation.len())));
        facts.extend(d.remarks.iter().map(|remark| pair("", remark)));
    }
    facts.extend(r.ranges.iter().map(|s| pair("ranges", &format!("{}, of {} samples of {}", s.path, s.samples, s.data_path))));
    facts.push(pair("run", &format!("requant {}, seed {}, {} threads, {:.1} s", r.requant_version, r.seed, r.threads, r.seconds)));
    body += &table(&["", ""], facts);
    body += &coverage("Coverage", &[("written file", &r.coverage)]);
    body += &outputs(&r.outputs);
    if let Some(e) = &r.eval {
        body += "<h2>Evaluation</h2>";
        body += &table(&["command", "#float", "#converted"], vec![vec![e.command.clone(), e.reference.to_string(), e.converted.to_string()]]);
    }
    body += &nodes(&r.nodes);
    let notes = r.notes.iter().map(|n| vec![n.step.to_string(), n.kind.name().to_string(), n.about.clone(), n.text.clone()]).collect();
    body += &folded(&format!("Remarks: {} declined, {} fell back", r.declined, r.fell_back), &table(&["step", "", "about", "what"], notes));
    let quantizers = r.quantizers.iter().map(|q| {
        let scale = if q.scales == 1 { format!("{}", q.scale_min) } else { format!("{} … {} ({})", q.scale_min, q.scale_max, q.scales) };
        vec![q.name.clone(), q.scheme.clone(), scale, q.zero_point.first().map_or(String::new(), f32::to_string), q.origin.clone()]
    });
    body += &folded(&format!("Quantizers: {}", r.quantizers.len()), &table(&["tensor", "scheme", "#scale", "#zero point", "origin"], quantizers.collect()));
    let steps = r.steps.iter().map(|s| vec![s.step.clone(), format!("{:.2}", s.seconds), s.peak_bytes.map_or(String::new(), size)]);
    body += &folded("Steps", &table(&["step", "#seconds", "#highest memory so far"], steps.collect()));
    body += &folded("Recipe, resolved", &format!("<pre>{}</pre>", escaped(&r.recipe.resolved)));
    whole(&r.output.path, &body)
}

/// The page of a comparison.
pub fn diff(d: &Diff) -> String {
    let mut body = format!("<p>against {}, {} samples</p>", escaped(&d.a), d.samples);
    if d.random {
        body += &bad(MEANS_NOTHING);
    }
    body += &coverage("Coverage", &[(&d.a, &d.coverage.0), (&d.b, &d.coverage.1)]);
    body += &outputs(&d.outputs);
    body += &nodes(&d.nodes);
    whole(&d.b, &body)
}

fn whole(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// Text that a browser shows as it is.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut t, c| {
        match c {
            '&' => t += "&amp;",
            '<' => t += "&lt;",
            '>' => t += "&gt;",
            '"' => t += "&quot;",
            c => t.push(c),
        }
        t
    })
}

fn bad(text: &str) -> String {
    format!("<p class=\"bad\">{}</p>\n", escaped(text))
}

fn pair(a: &str, b: &str) -> Vec<String> {
    vec![a.to_string(), b.to_string()]
}

/// A column whose header begins with `#` holds numbers.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let class = |h: &str| if h.starts_with('#') { " class=\"n\"" } else { "" };
    let mut text = String::from("<table>");
    if header.iter().any(|h| !h.is_empty()) {
        text += "<tr>";
        header.iter().for_each(|h| _ = write!(text, "<th{}>{}</th>", class(h), escaped(h.trim_start_matches('#'))));
        text += "</tr>\n";
    }
    for row in rows {
        text += "<tr>";
        row.iter().zip(header).for_each(|(cell, h)| _ = write!(text, "<td{}>{}</td>", class(h), escaped(cell)));
        text += "</tr>\n";
    }
    text + "</table>\n"
}

fn folded(title: &str, body: &str) -> String {
    format!("<details><summary>{}</summary>\n{body}</details>\n", escaped(title))
}

fn coverage(title: &str, files: &[(&str, &Coverage)]) -> String {
    let row = |(name, c): &(&str, &Coverage)| {
        let mut row = vec![name.to_string()];
        row.extend([c.cov8, c.cov16, c.w_only, c.float, c.act8, c.act16].map(percent));
        row
    };
    let header = ["", "#multiply-adds in 8 bits", "#in 16", "#weights only", "#float", "#activations in 8 bits", "#in 16"];
    format!("<h2>{title}</h2>\n{}", table(&header, files.iter().map(row).collect()))
}

fn outputs(rows: &[OutputRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let share = |x: Option<f64>| x.map_or(String::new(), percent);
    let mut cells = Vec::new();
    for o in rows {
        let (db, cosine) = if o.equal.is_some() { Default::default() } else { (o.sqnr_db.to_string(), format!("{:.5}", o.cosine)) };
        let top1 = o.accuracy.map_or(String::new(), |a| format!("{} of {}", percent(a.converted), percent(a.reference)));
        cells.push(vec![o.name.clone(), db, cosine, share(o.agreement), top1, share(o.equal), format!("{:.4}", o.largest_error), o.nan.to_string()]);
        let part = |p: &super::PartRow| {
            let mut row = vec![format!("— its part {}", p.name), p.sqnr_db.to_string(), format!("{:.5}", p.cosine), share(p.agreement)];
            row.resize(8, String::new());
            row
        };
        cells.extend(o.parts.iter().map(part));
    }
    let header = ["output", "#SQNR", "#cosine", "#agreement", "#top-1", "#equal", "#largest error", "#NaN"];
    format!("<h2>Outputs</h2>\n{}", table(&header, cells))
}

/// The bar is full at this many dB: more tells nothing.
const FULL_DB: f64 = 60.0;

fn nodes(rows: &[NodeRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Nodes, worst first</h2>\n<table><tr><th>node</th><th>op</th><th class=\"n\">SQNR</th><th></th><th class=\"n\">own</th><th class=\"n\">clipped</th>\
         <th class=\"n\">dead codes</th><th>scheme</th></tr>\n",
    );
    for r in rows {
        let width = (r.sqnr_db.0 / FULL_DB).clamp(0.0, 1.0) * 8.0;
        let share = |x: Option<f64>| x.map_or(String::new(), percent);
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td><span class=\"bar\" style=\"width:{width:.2}rem\"></span></td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escaped(&r.name),
            escaped(&r.op),
            r.sqnr_db,
            r.own_sqnr_db.map_or(String::new(), |d| d.to_string()),
            share(r.clipped),
            share(r.dead_codes),
            escaped(r.scheme.as_deref().unwrap_or_default())
        );
    }
    text + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;

    #[test]
    fn a_page_stands_by_itself_and_shows_names_as_they_are() {
        let mut r = full();
        r.nodes[0].name = "<script>alert(\"&\")</script>".into();
        let page = report(&r, &["sqnr_db of y is 1".to_string()]);
        assert!(page.contains("&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;") && !page.contains("<script"), "{page}");
        for fetched in ["http:", "https:", "src=", "url(", "@import", "<link"] {
            assert!(!page.contains(fetched), "{fetched}");
        }
        for word in ["Below the gate: sqnr_db of y is 1.", "20.0 dB", "Outputs", "Nodes, worst first", "Remarks: 1 declined, 1 fell back", "Quantizers: 1"] {
            assert!(page.contains(word), "{word}: {page}");
        }
        for tag in ["table", "tr", "td", "th", "details", "body", "html"] {
            assert_eq!(
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count(),
                page.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
    }
}
