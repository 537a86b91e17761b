//! Counters as text, in Prometheus's format 0.0.4.

use std::fmt::{Display, Write};

/// The text so far. Each family of samples is added once.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The whole text.
    pub fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Numbers that only grow, of which each has a label of its own.
    pub fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(String, u64)]) {
        self.head(name, "counter", help);
        for (of, value) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} {value}", escape(of));
        }
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A gauge that is 1 and says what this is in its labels.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.head(name, "gauge", help);
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} 1", labels.join(","));
    }

    /// How many are up to each bound, the last without one: all; and their sum.
    pub fn histogram(&mut self, name: &str, help: &str, bounds: &[f64], upto: &[u64], sum: f64) {
        self.head(name, "histogram", help);
        let all = upto.last().copied().unwrap_or(0);
        for (bound, n) in bounds.iter().zip(upto) {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {n}");
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {sum}\n{name}_count {all}");
    }
}

/// The value of a label.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_help_are_escaped() {
        let mut text = Exposition::default();
        text.info("a_info", "one\\two\nthree", &[("x", "q\"\\\n"), ("y", "")]);
        text.counter("b_total", "B.", 3);
        text.counters("d_total", "D.", "code", &[("a\"".into(), 1), ("b".into(), 2)]);
        text.histogram("c", "C.", &[0.5], &[2, 5], 7.25);
        let expected = "# HELP a_info one\\\\two\\nthree\n# TYPE a_info gauge\na_info{x=\"q\\\"\\\\\\n\",y=\"\"} 1\n\
                        # HELP b_total B.\n# TYPE b_total counter\nb_total 3\n\
                        # HELP d_total D.\n# TYPE d_total counter\nd_total{code=\"a\\\"\"} 1\nd_total{code=\"b\"} 2\n\
                        # HELP c C.\n# TYPE c histogram\nc_bucket{le=\"0.5\"} 2\nc_bucket{le=\"+Inf\"} 5\nc_sum 7.25\nc_count 5\n";
        assert_eq!(text.finish(), expected);
    }
}
