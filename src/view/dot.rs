//! The picture in Graphviz's language.

use super::scene::{Change, Role, Scene};
use super::svg::{colours, mark};
use std::fmt::Write;

/// A text in quotes.
fn quoted(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("\"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The whole file.
pub(super) fn write(scene: &Scene) -> String {
    let mut out = String::from(
        "digraph model {\n  rankdir=TB;\n  compound=true;\n  node [fontname=\"monospace\", fontsize=10, style=filled, shape=box];\n  edge [color=\"#9aa2ad\", arrowsize=0.6];\n",
    );
    let mut next = 0;
    graph(scene, 1, &mut next, &mut out);
    out.push_str("}\n");
    out
}

fn graph(scene: &Scene, depth: usize, next: &mut usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    let first = *next;
    let mut numbers = Vec::with_capacity(scene.items.len());
    *next += scene.items.len();
    for (i, item) in scene.items.iter().enumerate() {
        let number = first + i;
        numbers.push(number);
        let (fill, line, ink) = colours(item.role);
        let shape = match item.role {
            Role::Table => "cylinder",
            Role::RemoteLookup => "octagon",
            Role::Input | Role::Output | Role::Captured => "ellipse",
            _ => "box",
        };
        let (edge, thick) = if item.change == Change::Same { (line, 1) } else { (mark(item.change), 3) };
        // Lines are joined by \n, which Graphviz breaks at; those in names are no breaks.
        let lines: Vec<String> = std::iter::once(&item.title).chain(&item.lines).map(|l| quoted(l)).collect();
        let label = lines.iter().map(|l| &l[1..l.len() - 1]).collect::<Vec<_>>().join("\\n");
        let _ = writeln!(
            out,
            "{pad}n{number} [label=\"{label}\", shape={shape}, fillcolor=\"{fill}\", color=\"{edge}\", penwidth={thick}, fontcolor=\"{ink}\"];"
        );
        for (b, body) in item.bodies.iter().enumerate() {
            let _ = writeln!(out, "{pad}subgraph cluster_{number}_{b} {{\n{pad}  label={};\n{pad}  style=dashed;", quoted(&body.title));
            let inner = *next;
            graph(body, depth + 1, next, out);
            let _ = writeln!(out, "{pad}}}");
            if inner < *next {
                let _ = writeln!(out, "{pad}n{number} -> n{inner} [style=dotted, lhead=cluster_{number}_{b}];");
            }
        }
    }
    for a in &scene.arrows {
        let _ = writeln!(out, "{pad}n{} -> n{} [tooltip={}];", numbers[a.from], numbers[a.to], quoted(&a.label));
    }
}
