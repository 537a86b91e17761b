use std::path::Path;
fn main() {
    let (mut ok, mut bad) = (0, 0);
    for p in std::env::args().skip(1) {
        let path = Path::new(&p);
        let bytes = std::fs::read(path).unwrap();
        match graphtool::formats::load(path) {
            Err(e) => {
                bad += 1;
                println!("LOAD {e}")
            }
            Ok(m) => {
                let tmp = Path::new("/tmp/rt_out");
                std::fs::create_dir_all(tmp).unwrap();
                graphtool::formats::onnx::write::to_file(&m, &tmp.join("m.onnx"), "model.onnx.data", 1 << 30).unwrap();
                let out = std::fs::read(tmp.join("m.onnx")).unwrap();
                if out == bytes {
                    ok += 1
                } else {
                    bad += 1;
                    println!("DIFF {p} {} {}", bytes.len(), out.len())
                }
            }
        }
    }
    println!("{ok} equal, {bad} not");
}
