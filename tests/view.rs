//! Pictures and differences, as a user asks for them: what they show, and that no name of a file gets out of its place.

use graphtool::ir::{Model, parse_model};
use graphtool::view::changes::{Differences, differences};
use graphtool::view::{Form, draw, draw_changes};
use std::path::Path;
use std::process::{Command, Output};

fn model(name: &str) -> Model {
    graphtool::formats::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name).join("model.onnx")).expect("a model")
}

/// Element names of an XML text, after a check that they close in order and that no text holds a bare `<` or `&`.
fn elements(xml: &str) -> Vec<String> {
    let (mut open, mut names): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        for (i, _) in text.match_indices('&') {
            let entity = &text[i..text.len().min(i + 7)];
            assert!(["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|e| entity.starts_with(e)), "{entity}");
        }
        let end = at + rest[at..].find('>').expect("an element that ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with('?') {
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
            None => {
                let name = tag.split([' ', '/']).next().unwrap_or_default().to_owned();
                names.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
    }
    assert_eq!(open, Vec::<String>::new());
    names
}

#[test]
fn a_picture_shows_tables_lookups_bodies_and_the_interface() {
    let svg = draw(&model("loop_rnn_ts13"), Form::Svg);
    let names = elements(&svg);
    assert!(names.iter().all(|n| ["svg", "defs", "marker", "path", "rect", "text", "title", "g"].contains(&n.as_str())), "{names:?}");
    for part in ["e.weight", "200×8 float32, 6.2 KiB", "int64[batch,seq]", ">Loop<", ">body<", "/e/Gather"] {
        assert!(svg.contains(part), "{part}");
    }
    assert_eq!(svg, draw(&model("loop_rnn_ts13"), Form::Svg));
}

#[test]
fn no_name_gets_out_of_its_place() {
    let evil = r#"</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>]]>{{SVG}}\n"#;
    let text = format!("graph g(\"{evil}\": float32[\"<b>\"]) -> (\"y{evil}\") {{\n  \"y{evil}\" = Relu(\"{evil}\") # \"n{evil}\"\n}}");
    let model = parse_model(&text).expect("a model");
    let svg = draw(&model, Form::Svg);
    let names = elements(&svg);
    assert!(!names.iter().any(|n| n == "script" || n == "img"), "{names:?}");
    let html = draw(&model, Form::Html);
    assert_eq!((html.matches("<script").count(), html.matches("</script>").count(), html.matches("<img").count()), (2, 2, 0));
    assert_eq!(html.matches("<svg").count(), 1);
    assert!(!html.contains("http:") || html.matches("http:").count() == html.matches("http://www.w3.org/2000/svg").count());
    let data = html.split("id=\"data\">").nth(1).and_then(|d| d.split("</script>").next()).expect("the data");
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert!(data.to_string().contains("onerror=alert(2)"));
    let dot = draw(&model, Form::Dot);
    let quotes = dot.lines().filter(|l| l.replace("\\\\", "").replace("\\\"", "").matches('"').count() % 2 != 0).count();
    assert_eq!(quotes, 0, "{dot}");
}

const OLD: &str = "model ir_version=8 opset=[\"\"=13]\ngraph g(ids: int64[n]) -> (y) {\n  param T: float32[2,2] = [1.0, 2.0, 3.0, 4.0]\n  a = Gather(T, ids)\n  b = Relu(a)\n  c = Concat(a, b) {axis=1}\n  y = Tanh(c)\n}\n";

fn changes(new: &str) -> Differences {
    differences(&parse_model(OLD).expect("a model"), &parse_model(new).expect("a model"))
}

fn told(new: &str) -> Vec<String> {
    let what = |old: bool, new: bool| {
        if old && new {
            "changed"
        } else if new {
            "added"
        } else {
            "removed"
        }
    };
    let one = |d: &graphtool::view::changes::Difference| {
        format!("{} {} {}: {}", what(d.old.is_some(), d.new.is_some()), d.kind, d.name, d.changes.join("; "))
    };
    changes(new).list.iter().map(one).collect()
}

#[test]
fn order_and_names_are_no_differences() {
    let lines: Vec<&str> = OLD.lines().collect();
    let order = [0, 1, 2, 6, 5, 3, 4, 7].map(|i| lines[i]).join("\n");
    assert_eq!(told(&order), [""; 0]);
    let renamed = OLD.replace("a = ", "p = ").replace("(a", "(p").replace("b = ", "q = ").replace(", b)", ", q)").replace("T:", "W:");
    let renamed = renamed.replace("(T,", "(W,");
    let found = changes(&renamed);
    assert_eq!((found.list.len(), found.renamed.len()), (0, 3), "{found:?}");
}

#[test]
fn what_changed_is_told_where_it_changed_and_nowhere_else() {
    assert_eq!(told(&OLD.replace("axis=1", "axis=0")), ["changed node c: attribute axis: 1 is now 0"]);
    assert_eq!(told(&OLD.replace("4.0]", "4.5]")), ["changed parameter T: 1 of 4 elements differ, by 0.5 at most"]);
    let without = OLD.replace("  b = Relu(a)\n", "").replace("(a, b)", "(a, a)");
    assert_eq!(told(&without), ["removed node b: ", "changed node c: input 1: \"b\" is now \"a\""]);
    let renamed = OLD.replace("c = ", "z = ").replace("(c)", "(z)").replace("axis=1", "axis=0");
    assert_eq!(told(&renamed), ["changed node z: attribute axis: 1 is now 0"]);
    assert_eq!(told(&OLD.replace("int64[n]", "int32[n]")), ["changed input ids: "]);
    assert_eq!(told(&OLD.replace("=13]", "=17]")), ["changed opset ai.onnx: "]);
}

#[test]
fn a_picture_of_two_models_marks_what_differs() {
    let (old, new) = (parse_model(OLD).expect("a model"), parse_model(&OLD.replace("Tanh", "Relu")).expect("a model"));
    let svg = draw_changes(&old, &new, Form::Svg);
    elements(&svg);
    // The legend, and a box each.
    assert_eq!(svg.matches("stroke=\"#1a9c3e\"").count(), 2, "added");
    assert!(svg.matches("stroke=\"#d12f3a\"").count() >= 2, "removed");
    assert_eq!(draw_changes(&old, &old, Form::Svg).matches("stroke=\"#1a9c3e\"").count(), 0);
}

#[test]
fn a_long_chain_is_drawn_with_a_box_for_each_node() {
    let mut text = String::from("graph g(x: float32[4]) -> (v2999) {\n  v0 = Relu(x)\n");
    (1..3000).for_each(|i| text.push_str(&format!("  v{i} = Add(v{}, x)\n", i - 1)));
    text.push_str("}\n");
    let svg = draw(&parse_model(&text).expect("a model"), Form::Svg);
    assert_eq!(svg.matches("class=\"box\"").count(), 3002);
}

fn program(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graphtool")).args(args).current_dir(dir).output().expect("the program runs")
}

#[test]
fn the_commands_write_files_and_end_with_their_codes() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| format!("{}/models/{name}/model.onnx", env!("CARGO_MANIFEST_DIR"));
    let (deep, wide) = (file("deepfm_ts13"), file("widedeep_ts11"));
    let code = |args: &[&str]| program(args, dir.path()).status.code();
    for out in ["a.svg", "a.html", "a.dot"] {
        assert_eq!(code(&["view", &deep, "-o", out]), Some(0));
        assert!(std::fs::metadata(dir.path().join(out)).expect("a file").len() > 1000);
    }
    assert_eq!(code(&["rewrite", &deep, "-o", "d.dist", "--min-bytes", "0"]), Some(0));
    assert_eq!(code(&["view", &deep, "d.dist", "-o", "b.svg"]), Some(0));
    assert_eq!(code(&["view", "d.dist", "--diff", &deep, "-o", "c.svg"]), Some(0));
    let read = |n: &str| std::fs::read(dir.path().join(n)).expect("a file");
    assert_eq!(read("b.svg"), read("c.svg"));
    assert_eq!(code(&["view", &deep, "-o", "a.png"]), Some(2));
    assert!(!dir.path().join("a.png").exists());
    assert_eq!(code(&["view", "nothing.onnx", "-o", "e.svg"]), Some(1));
    assert_eq!((code(&["diff", &deep, &deep]), code(&["diff", &deep, &wide])), (Some(0), Some(1)));
    let json = program(&["diff", &deep, "d.dist", "--json"], dir.path());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let added = |d: &&serde_json::Value| d["change"] == "added" && d["kind"] == "node";
    assert_eq!(json["differences"].as_array().expect("a list").iter().filter(added).count(), 1);
}

#[test]
fn inspect_tells_what_a_run_costs() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = format!("{}/models/dlrm_ts13/model.onnx", env!("CARGO_MANIFEST_DIR"));
    let cost = |args: &[&str]| {
        let out = program(&[&["inspect", &file, "--json"], args].concat(), dir.path());
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        json["costs"].clone()
    };
    let (free, one, two) = (cost(&[]), cost(&["--batch-size", "1"]), cost(&["--dim", "batch=2"]));
    assert_eq!((&free["unbound"][0], &one["unknown_nodes"], &two["unknown_nodes"]), (&"batch".into(), &0.into(), &0.into()));
    // A layer of 13 to 32 with bias: 2·13·32 + 32 for each sample.
    let first = |c: &serde_json::Value| {
        c["nodes"].as_array().expect("nodes").iter().find(|n| n["node"] == "/bot/bot.0/Gemm").expect("it")["flops"].clone()
    };
    assert_eq!((first(&free), first(&one), first(&two)), (serde_json::Value::Null, 864.into(), 1728.into()));
    assert_eq!(program(&["inspect", &file, "--dim", "nobody=3"], dir.path()).status.code(), Some(2));
}
