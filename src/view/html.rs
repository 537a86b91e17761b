//! The picture as a page: to move, to search in, and with everything that is known of a box on a click. It loads nothing.

use super::scene::{Item, Scene};
use super::svg::{escape, picture};

/// The whole file.
pub(super) fn write(scene: &Scene) -> String {
    let (svg, items) = picture(scene);
    let title = escape(&scene.items.first().map_or(String::new(), |_| scene.title.clone()));
    PAGE.replace("{{TITLE}}", if title.is_empty() { "graphtool" } else { &title })
        .replace("{{DATA}}", &data(&items))
        .replace("{{SVG}}", &svg)
}

/// What a click shows of each box, as JSON that cannot end the element it stands in.
fn data(items: &[Item]) -> String {
    let mut out = String::from("[");
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i == 0 { "[" } else { ",[" });
        out.push_str(&text(&item.title));
        for (name, value) in &item.details {
            out.push_str(&format!(",[{},{}]", text(name), text(value)));
        }
        out.push(']');
    }
    out.push(']');
    out
}

fn text(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' | '<' | '>' | '&' | '{' | '}' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

const PAGE: &str = include_str!("page.html");
