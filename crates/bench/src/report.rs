//! Results on paper: the page with all figures, plots of growth, and the comparison with what was stored.
//!
//! Pure: results in, text out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use meta::Value;

use crate::numbers::rounded;

/// Processor time of an operation may be so many times the stored one.
pub const REGRESSION: f64 = 1.1;
/// Of how the figures came about; the page begins with it.
const METHOD: &str = "\
Every system under test is a process of its own, started by the bench on a new folder and spoken to by an ordinary client of
the public API: TLS, a token, authorization, admission, validation and audit are on, and every write is synced before it is
answered. Client and server share the machine; figures that say `client` are the client's. Peers run beside, interleaved, on
the same machine; of several rounds the median counts. Processor time of the server for each operation (`cpu_us_per_…`) is the
figure that other programs disturb least; `foreign_cpu_percent` says how much of the machine they had meanwhile, and wall times
with more than a few percent of it are pessimistic. A figure that is not here was not measured.";

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

/// The page of all results.
pub fn page(results: &[Value]) -> String {
    let mut text = format!("# Results of the bench\n\n{METHOD}\n");
    for result in results {
        // Writing to a String cannot fail.
        let shape = result["options"]["shape"].as_str().map(|shape| format!(": {shape}")).unwrap_or_default();
        let _ = write!(text, "\n## {}{shape}\n\n", result["bench"].text());
        let machine = &result["machine"];
        let options: Vec<String> = result["options"].entries().iter().map(|(key, value)| said(key, value)).collect();
        let _ = writeln!(
            text,
            "{}; {} cores ({}), kernel {}, {} % of the machine used by others, {} s. Options: {}.\n",
            machine["date"].text(),
            show(&machine["cores"]),
            machine["cpu"].text(),
            machine["kernel"].text(),
            show(&machine["foreign_cpu_percent"]),
            show(&machine["seconds"]),
            options.join(", "),
        );
        let peer = &result["peer"];
        let peer_name = peer["name"].as_str().unwrap_or("peer");
        let _ = writeln!(text, "| figure | here | {peer_name} | floor | goal |\n|---|---|---|---|---|");
        for (key, value) in result["figures"].entries().iter() {
            let verdict = &result["verdicts"][key];
            let line = |line: &str, reached: &str| match float(&verdict[line]) {
                Some(_) if verdict[reached].is_true() => format!("{} reached", show(&verdict[line])),
                Some(_) => format!("{} missed", show(&verdict[line])),
                None => String::new(),
            };
            let _ = writeln!(
                text,
                "| {key} | {} | {} | {} | {} |",
                show(value),
                show(&peer["figures"][key]),
                line("floor", "floor_reached"),
                line("goal", "goal_reached"),
            );
        }
        let beside = peer["figures"].entries().iter().filter(|(key, _)| result["figures"][*key].is_null());
        for (key, value) in beside {
            let _ = writeln!(text, "| {key} | | {} | | |", show(value));
        }
        for note in result["notes"].items() {
            let _ = writeln!(text, "\n{}", note.text());
        }
    }
    text
}

fn said(key: &str, value: &Value) -> String {
    format!("{key}={}", show(value))
}

fn show(value: &Value) -> String {
    match value {
        Value::Str(text) => text.to_string(),
        value => float(value).map_or_else(String::new, |number| rounded(number).to_string()),
    }
}

/// One line of a plot: size and value.
pub type Points = Vec<(f64, f64)>;

/// The lines of a `growth` result: by metric (`cpu_us`, `bytes`) and thing.
pub fn growth_lines(result: &Value) -> BTreeMap<String, BTreeMap<String, Points>> {
    let mut found: BTreeMap<String, BTreeMap<String, Points>> = BTreeMap::new();
    for (key, value) in result["figures"].entries().iter() {
        // `pods_2000_cpu_us`
        let mut words = key.splitn(3, '_');
        let (Some(thing), Some(size), Some(metric)) = (words.next(), words.next(), words.next()) else { continue };
        if let (Ok(size), Some(value)) = (size.parse::<f64>(), float(value)) {
            found.entry(metric.to_owned()).or_default().entry(thing.to_owned()).or_default().push((size, value));
        }
    }
    for points in found.values_mut().flat_map(BTreeMap::values_mut) {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    found
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 6] = ["#0b6e4f", "#c1440e", "#1f4e9c", "#8a2be2", "#b8860b", "#444444"];

/// A plot with both axes logarithmic.
pub fn plot(title: &str, unit: &str, lines: &BTreeMap<String, Points>) -> String {
    let all: Vec<(f64, f64)> = lines.values().flatten().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let logs = all.iter().map(pick).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
        if low > high { (0.0, 1.0) } else { (low.floor(), high.ceil().max(low.floor() + 1.0)) }
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let x = |value: f64| MARGIN + (value.log10() - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - (value.log10() - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    // Writing to a String cannot fail.
    for power in left as i32..=right as i32 {
        let (at, value) = (x(10_f64.powi(power)), 10_f64.powi(power));
        let (top, bottom) = (MARGIN, HEIGHT - MARGIN);
        let _ = writeln!(svg, "<line x1=\"{at}\" y1=\"{top}\" x2=\"{at}\" y2=\"{bottom}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{value}</text>", bottom + 16.0);
    }
    for power in low as i32..=high as i32 {
        let (at, value) = (y(10_f64.powi(power)), 10_f64.powi(power));
        let (from, to) = (MARGIN, WIDTH - MARGIN);
        let _ = writeln!(svg, "<line x1=\"{from}\" y1=\"{at}\" x2=\"{to}\" y2=\"{at}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{value}</text>", from - 6.0, at + 4.0);
    }
    let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"44\">{unit}, by size</text>");
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let places: Vec<String> = points
            .iter()
            .filter(|(size, value)| *size > 0.0 && *value > 0.0)
            .map(|(size, value)| format!("{:.1},{:.1}", x(*size), y(*value)))
            .collect();
        let path = places.join(" ");
        let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        let (at, right) = (MARGIN + 16.0 * number as f64, WIDTH - MARGIN + 4.0);
        let _ = writeln!(svg, "<text x=\"{right}\" y=\"{at}\" fill=\"{colour}\" font-size=\"11\">{name}</text>");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Whether a result takes the place of a stored one: it is of the same bench, of the same shape where there are some, and of
/// the same processor. What another one needed says nothing of this one.
pub fn replaces(new: &Value, old: &Value) -> bool {
    let what = |result: &Value| {
        let (bench, shape) = (result["bench"].clone(), result["options"]["shape"].clone());
        [bench, shape, result["machine"]["cpu"].clone()]
    };
    what(new) == what(old)
}

/// What is worse than it was: figures of processor time for each operation that grew by more than a tenth.
pub fn regressions(stored: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in now["figures"].entries().iter().filter(|(key, _)| key.starts_with("cpu_us_per_")) {
        let (Some(was), Some(is)) = (float(&stored["figures"][key]), float(value)) else { continue };
        if was > 0.0 && is > was * REGRESSION {
            let percent = (is / was - 1.0) * 100.0;
            let bench = now["bench"].text();
            found.push(format!("{bench}: {key} was {was} and is {is}, {percent:.0} % more"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn result() -> Value {
        json!({
            "bench": "store", "options": {"rounds": 3}, "peer": {"name": "etcd", "figures": {"puts_per_s": 10, "more_ms": 1}},
            "figures": {"puts_per_s": 25, "cpu_us_per_put": 8.0}, "notes": ["in process"],
            "machine": {"cores": 2, "date": "2026-11-23T00:00:00Z", "foreign_cpu_percent": 1.5},
            "verdicts": {"puts_per_s": {"floor": 20, "floor_reached": true, "goal": 40, "goal_reached": false}},
        })
    }

    #[test]
    fn pages_tell_what_was_reached() {
        let page = page(&[result()]);
        assert!(page.contains("| puts_per_s | 25 | 10 | 20 reached | 40 missed |"), "{page}");
        assert!(page.contains("| more_ms | | 1 | | |") && page.contains("rounds=3") && page.contains("in process"));
    }

    #[test]
    fn only_a_tenth_more_is_a_regression() {
        let mut now = result();
        now.set(&["figures", "cpu_us_per_put"], 8.7);
        now.set(&["figures", "puts_per_s"], 1_i64);
        assert!(regressions(&result(), &now).is_empty());
        now.set(&["figures", "cpu_us_per_put"], 8.9);
        let found = regressions(&result(), &now);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("11 % more"), "{found:?}");
    }

    #[test]
    fn a_result_takes_the_place_of_its_own_processors() {
        let mut new = result();
        new.set(&["figures", "puts_per_s"], 30_i64);
        assert!(replaces(&new, &result()));
        new.set(&["machine", "cpu"], "another");
        assert!(!replaces(&new, &result()));
    }

    #[test]
    fn plots_have_a_line_for_each_thing() {
        let figures = json!({"pods_10_cpu_us": 5, "pods_100_cpu_us": 6, "nodes_10_cpu_us": 7, "cpu_us_per_pod": 1});
        let lines = growth_lines(&json!({"figures": figures}));
        assert_eq!(lines["cpu_us"]["pods"], [(10.0, 5.0), (100.0, 6.0)]);
        let svg = plot("cost", "us", &lines["cpu_us"]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(plot("nothing", "us", &BTreeMap::new()).ends_with("</svg>\n"));
    }
}
