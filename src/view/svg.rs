//! The picture as SVG.

use super::layout::{LINE, Layout, PAD, Place, lay_out};
use super::scene::{Change, Item, Role, Scene, short};
use std::fmt::Write;

/// A text that stands for itself in XML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Neither XML nor an eye can take these.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// Fill, border and text colour of a role.
pub(super) fn colours(role: Role) -> (&'static str, &'static str, &'static str) {
    match role {
        Role::Input => ("#e3f2e6", "#3c8d4f", "#1d4d2a"),
        Role::Output => ("#2f5d3a", "#1d4d2a", "#ffffff"),
        Role::Captured => ("#ffffff", "#8a8f98", "#5b616b"),
        Role::Table => ("#ffe3b3", "#c77700", "#5a3600"),
        Role::Weights => ("#f4efe6", "#a79b86", "#4d4638"),
        Role::RemoteLookup => ("#f28c28", "#9a4b00", "#ffffff"),
        Role::Lookup => ("#ffd08a", "#c77700", "#5a3600"),
        Role::Collective => ("#d64550", "#8c1d27", "#ffffff"),
        Role::Product => ("#cfe0fb", "#3b6fc4", "#173a73"),
        Role::Elements => ("#eef1f5", "#8a94a3", "#2b323c"),
        Role::Reduce => ("#e6dcf7", "#7a55b8", "#3b2366"),
        Role::Shape => ("#fafafa", "#b7bcc4", "#4a505a"),
        Role::Control => ("#f5fbff", "#2b8ca3", "#0f4a57"),
        Role::Call => ("#fff7fb", "#b8558d", "#66234a"),
        Role::Other => ("#ffffff", "#444a52", "#2b323c"),
    }
}

/// What a role is called in the legend.
fn legend() -> [(&'static str, Role); 9] {
    [
        ("remote lookup", Role::RemoteLookup),
        ("table", Role::Table),
        ("lookup here", Role::Lookup),
        ("product", Role::Product),
        ("reduction, norm", Role::Reduce),
        ("element by element", Role::Elements),
        ("shape, selection", Role::Shape),
        ("control flow", Role::Control),
        ("collective", Role::Collective),
    ]
}

/// The whole file.
pub(super) fn write(scene: &Scene) -> String {
    let (picture, _) = picture(scene);
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{picture}")
}

/// The element, and the boxes in the order of their numbers.
pub(super) fn picture(scene: &Scene) -> (String, Vec<Item>) {
    let layout = lay_out(scene);
    let (margin, head) = (24.0, 52.0);
    let (width, height) = ((layout.width + 2.0 * margin).max(940.0), layout.height + 2.0 * margin + head);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"'DejaVu Sans Mono','SFMono-Regular',Menlo,Consolas,monospace\" font-size=\"11\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0.5 L8 4 L0 7.5 z\" fill=\"#7d8590\"/></marker></defs>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n"
    );
    let mut x = margin;
    let changes = has_changes(scene);
    for (text, role) in legend() {
        let (fill, line, _) = colours(role);
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"14\" width=\"12\" height=\"12\" rx=\"3\" fill=\"{fill}\" stroke=\"{line}\"/>\
             <text x=\"{:.0}\" y=\"24\" fill=\"#444a52\" font-size=\"10\">{text}</text>",
            x + 17.0
        );
        x += 34.0 + text.len() as f64 * 6.1;
    }
    if changes {
        let mut x = margin;
        for (text, change) in [("added", Change::Added), ("removed", Change::Removed), ("changed", Change::Changed)] {
            let _ = writeln!(
                out,
                "<rect x=\"{x:.0}\" y=\"34\" width=\"12\" height=\"12\" fill=\"#ffffff\" stroke-width=\"3\" stroke=\"{}\"/>\
                 <text x=\"{:.0}\" y=\"44\" fill=\"#444a52\" font-size=\"10\">{text}</text>",
                mark(change),
                x + 18.0
            );
            x += 80.0;
        }
    }
    let mut items = Vec::new();
    let _ = writeln!(out, "<g transform=\"translate({margin:.0} {:.0})\">", margin + head - 10.0);
    graph(scene, &layout, changes, &mut items, &mut out);
    out.push_str("</g>\n</svg>\n");
    (out, items)
}

pub(super) fn has_changes(scene: &Scene) -> bool {
    scene.items.iter().any(|i| i.change != Change::Same || i.bodies.iter().any(has_changes))
}

/// The colour of a change.
pub(super) fn mark(change: Change) -> &'static str {
    match change {
        Change::Same => "none",
        Change::Added => "#1a9c3e",
        Change::Removed => "#d12f3a",
        Change::Changed => "#c9a100",
    }
}

fn graph(scene: &Scene, layout: &Layout, changes: bool, items: &mut Vec<Item>, out: &mut String) {
    for route in &layout.routes {
        let arrow = &scene.arrows[route.arrow];
        let [first, .., last] = route.points[..] else { continue };
        let title = escape(&short(&arrow.label, 200));
        let dashed = match (scene.items[arrow.from].change, scene.items[arrow.to].change) {
            (Change::Removed, _) | (_, Change::Removed) => " stroke-dasharray=\"4 3\" stroke=\"#d12f3a\"",
            _ => " stroke=\"#9aa2ad\"",
        };
        if route.far {
            let name = escape(&short(arrow.label.split(':').next().unwrap_or(""), 22));
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {:.1} v-12\" fill=\"none\"{dashed}/><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"8\" fill=\"#7d8590\">{name}</text>",
                last.0,
                last.1,
                last.0 + 3.0,
                last.1 - 5.0
            );
            continue;
        }
        let mut d = format!("M{:.1} {:.1}", first.0, first.1);
        for pair in route.points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            if (x0 - x1).abs() < 0.5 {
                let _ = write!(d, " L{x1:.1} {y1:.1}");
            } else {
                let m = (y0 + y1) / 2.0;
                let _ = write!(d, " C{x0:.1} {m:.1} {x1:.1} {m:.1} {x1:.1} {y1:.1}");
            }
        }
        let _ = writeln!(out, "<path d=\"{d}\" fill=\"none\"{dashed} marker-end=\"url(#tip)\"><title>{title}</title></path>");
    }
    for (item, place) in scene.items.iter().zip(&layout.places) {
        one(item, place, changes, items, out);
    }
}

fn one(item: &Item, p: &Place, changes: bool, items: &mut Vec<Item>, out: &mut String) {
    let number = items.len();
    items.push(Item { bodies: Vec::new(), ..item.clone() });
    let faded = if changes && item.change == Change::Same && item.bodies.is_empty() { " opacity=\"0.6\"" } else { "" };
    let _ = writeln!(out, "<g class=\"box\" id=\"n{number}\"{faded}>");
    let hint: Vec<String> = item.details.iter().take(30).map(|(k, v)| format!("{k}: {v}")).collect();
    let _ = writeln!(out, "<title>{}</title>", hint.iter().map(|h| escape(h)).collect::<Vec<_>>().join("\n"));
    shape(item, p, out);
    let (_, _, ink) = colours(item.role);
    let middle = p.x + p.width / 2.0;
    let mut y = p.y + PAD + 8.0 + if item.role == Role::Table { 6.0 } else { 0.0 };
    let mut line = |text: &str, style: &str| {
        let _ = writeln!(out, "<text x=\"{middle:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"{ink}\"{style}>{}</text>", escape(text));
        y += LINE;
    };
    line(&item.title, " font-size=\"12\" font-weight=\"bold\"");
    item.lines.iter().for_each(|l| line(l, " font-size=\"10.5\""));
    for ((x, y, inner), body) in p.bodies.iter().zip(&item.bodies) {
        let (left, top) = (p.x + x, p.y + y);
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"6\" fill=\"#ffffff\" stroke=\"#2b8ca3\" stroke-dasharray=\"5 4\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#0f4a57\" font-size=\"10\">{}</text>\n<g transform=\"translate({:.1} {:.1})\">",
            inner.width + 2.0 * PAD,
            inner.height + 2.0 * PAD + LINE,
            left + PAD,
            top + 13.0,
            escape(&body.title),
            left + PAD,
            top + PAD + LINE
        );
        graph(body, inner, changes, items, out);
        out.push_str("</g>\n");
    }
    out.push_str("</g>\n");
}

fn shape(item: &Item, p: &Place, out: &mut String) {
    let (fill, line, _) = colours(item.role);
    let Place { x, y, width: w, height: h, .. } = *p;
    let (edge, thick) = match item.change {
        Change::Same => (line, if matches!(item.role, Role::RemoteLookup | Role::Table) { 2.0 } else { 1.0 }),
        c => (mark(c), 3.5),
    };
    let paint = format!("fill=\"{fill}\" stroke=\"{edge}\" stroke-width=\"{thick}\"");
    let _ = match item.role {
        Role::Table => {
            let lid = 5.0;
            writeln!(
                out,
                "<path d=\"M{x:.1} {:.1} a{:.1} {lid} 0 0 1 {w:.1} 0 v{:.1} a{:.1} {lid} 0 0 1 -{w:.1} 0 z\" {paint}/>\
                 <path d=\"M{x:.1} {:.1} a{:.1} {lid} 0 0 0 {w:.1} 0\" fill=\"none\" stroke=\"{edge}\"/>",
                y + lid,
                w / 2.0,
                h - 2.0 * lid,
                w / 2.0,
                y + lid,
                w / 2.0
            )
        }
        Role::RemoteLookup => {
            let c = 12.0f64.min(h / 2.0);
            writeln!(
                out,
                "<path d=\"M{:.1} {y:.1} h{:.1} l{c} {c} v{:.1} l-{c} {c} h-{:.1} l-{c} -{c} v-{:.1} z\" {paint}/>",
                x + c,
                w - 2.0 * c,
                h - 2.0 * c,
                w - 2.0 * c,
                h - 2.0 * c
            )
        }
        Role::Captured => {
            writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"10\" stroke-dasharray=\"3 3\" {paint}/>")
        }
        Role::Input | Role::Output => {
            writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"{:.1}\" {paint}/>", (h / 2.0).min(16.0))
        }
        _ => writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"4\" {paint}/>"),
    };
}
