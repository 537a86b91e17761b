//! Manual pages. The `//!` header of a pass's file is its page: *What*, *Why*, *Before*, *After*, *Needs*, *Leaves alone*,
//! where *Before* and *After* are graphs in the text form, which a test runs.

/// The header of a source file, without its marks.
pub fn page(source: &str) -> String {
    let lines = source.lines().take_while(|l| l.starts_with("//!")).map(|l| l[3..].strip_prefix(' ').unwrap_or(&l[3..]));
    lines.collect::<Vec<_>>().join("\n")
}

/// A section of a page: from its mark to the next.
pub fn section(page: &str, mark: &str) -> Option<String> {
    let start = format!("*{mark}*:");
    let mut lines = page.lines().skip_while(|l| !l.starts_with(&start));
    let first = lines.next()?[start.len()..].trim().to_owned();
    let rest = lines.take_while(|l| !(l.starts_with('*') && l.contains("*:")));
    Some(std::iter::once(first.as_str()).chain(rest).collect::<Vec<_>>().join("\n").trim().to_owned())
}

/// What a pass does, in its first clause.
pub fn summary(page: &str) -> String {
    let what = section(page, "What").unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let end = [". ", "; ", ": "].iter().filter_map(|mark| what.find(mark)).min().unwrap_or(what.len());
    what[..end].trim_end_matches('.').to_owned()
}

/// The graph in a section.
pub fn example(page: &str, mark: &str) -> Option<String> {
    let text = section(page, mark)?;
    let (_, rest) = text.split_once("```text\n")?;
    Some(rest.split_once("```")?.0.to_owned())
}

/// A page as a terminal shows it: graphs are indented, marks are words.
pub fn plain(page: &str) -> String {
    let mut out = String::new();
    let mut code = false;
    for line in page.lines() {
        if line.starts_with("```") {
            code = !code;
        } else if code {
            out += &format!("    {line}\n");
        } else {
            let line = line.strip_prefix('*').and_then(|l| l.split_once("*:")).map_or(line.to_owned(), |(m, rest)| format!("{m}:{rest}"));
            out += &format!("{}\n", line.replace('`', ""));
        }
    }
    out
}
