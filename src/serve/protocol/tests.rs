//! The protocol against bytes written by hand.

use super::*;
use crate::ir::{Dim, Type};
use crate::tensor::{DType, Tensor, Value, bf16, f16};
use bytes::Bytes;

fn port(name: &str, dtype: DType, dims: &[Option<usize>]) -> Port {
    let dims = dims.iter().map(|d| d.map_or(Dim::Symbol("N".into()), Dim::Known));
    Port { name: name.into(), ty: Some(Type::tensor(dtype, dims)), optional: false }
}

fn interface(inputs: Vec<Port>) -> Interface {
    let outputs = vec![port("y", DType::F32, &[None]), port("z", DType::I64, &[None, Some(2)])];
    Interface { name: "m".into(), version: "1".into(), inputs, outputs }
}

/// The only input of a request, where the model takes one called `x`.
fn input(port: Port, json: &str, binary: &[u8]) -> Result<Tensor, String> {
    let request = parse(&interface(vec![port]), json.as_bytes(), Bytes::copy_from_slice(binary)).map_err(|e| e.to_string())?;
    Ok(request.inputs[0].1.as_tensor().unwrap().clone())
}

fn json(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}"#)
}

fn any(dtype: DType) -> Port {
    Port { name: "x".into(), ty: Some(Type::unranked(dtype)), optional: false }
}

#[test]
fn integers_are_exact_to_the_last_bit() {
    let text = json("INT64", "[3]", "[9007199254740993, -9223372036854775808, 9223372036854775807]");
    assert_eq!(input(any(DType::I64), &text, b"").unwrap(), Tensor::vector(vec![9_007_199_254_740_993i64, i64::MIN, i64::MAX]));
    let text = json("UINT64", "[1,1]", "[[18446744073709551615]]");
    assert_eq!(input(any(DType::U64), &text, b"").unwrap(), Tensor::new([1, 1], vec![u64::MAX]).unwrap());
    for (kind, dtype, value, says) in [
        ("INT64", DType::I64, "9223372036854775808", "element 0: invalid value: integer `9223372036854775808`, expected i64"),
        ("INT64", DType::I64, "1.0", "element 0: invalid type: floating point `1.0`, expected i64"),
        ("INT64", DType::I64, "\"1\"", "element 0: invalid type: string \"1\", expected i64"),
        ("UINT8", DType::U8, "256", "element 0: invalid value: integer `256`, expected u8"),
        ("UINT64", DType::U64, "-1", "element 0: invalid value: integer `-1`, expected u64"),
        ("BOOL", DType::Bool, "2", "element 0: invalid value: integer `2`, expected true, false, 1 or 0"),
        ("FP16", DType::F16, "70000", "element 0: the number is out of range for FP16"),
        ("FP32", DType::F32, "true", "element 0: invalid type: boolean `true`, expected f32"),
        ("BYTES", DType::String, "1", "element 0: invalid type: integer `1`, expected a string"),
        ("BF16", DType::BF16, "1", "BF16 has no form in JSON: it goes as binary data"),
    ] {
        let found = input(any(dtype), &json(kind, "[1]", &format!("[{value}]")), b"").unwrap_err();
        assert_eq!(found, format!("input \"x\": {says}"));
    }
}

#[test]
fn floats_are_rounded_once() {
    // Halfway between two floats but for the last digit, which a double cannot hold beside the first ones.
    let text = json("FP32", "[2]", "[1.00000005960464477540, 0.1]");
    assert_eq!(input(any(DType::F32), &text, b"").unwrap(), Tensor::vector(vec![1.000_000_1f32, 0.1]));
    let text = json("FP16", "[2]", "[0.1, -65504]");
    assert_eq!(input(any(DType::F16), &text, b"").unwrap(), Tensor::vector(vec![f16::from_f32(0.1), f16::MIN]));
    assert!(input(any(DType::F32), &json("FP32", "[1]", "[1e39]"), b"").unwrap_err().contains("out of range"));
    assert!(input(any(DType::F64), &json("FP64", "[1]", "[NaN]"), b"").unwrap_err().starts_with("the request is none of the protocol"));
}

#[test]
fn data_is_flat_or_nested_as_the_shape_says() {
    let want = Tensor::new([2, 3], vec![1i32, 2, 3, 4, 5, 6]).unwrap();
    for data in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", " [ [1,2,3] , [4,5,6] ] "] {
        assert_eq!(input(any(DType::I32), &json("INT32", "[2,3]", data), b""), Ok(want.clone()));
    }
    assert_eq!(input(any(DType::I32), &json("INT32", "[]", "7"), b""), Ok(Tensor::scalar(7)));
    assert_eq!(input(any(DType::I32), &json("INT32", "[]", "[7]"), b""), Ok(Tensor::scalar(7)));
    for (shape, data) in [("[0,3]", "[]"), ("[2,0]", "[[],[]]"), ("[0]", "[]")] {
        assert!(input(any(DType::I32), &json("INT32", shape, data), b"").unwrap().is_empty(), "{shape} {data}");
    }
    for (data, says) in [
        ("[1,2,3,4,5]", "element 5: expected a list of 6, found 5"),
        ("[1,2,3,4,5,6,7]", "element 7: expected a list of 6, found more"),
        ("[[1,2],[3,4],[5,6]]", "element 2: expected a list of 3, found 2"),
        ("[[1,2,3],[4,5,6],[7,8,9]]", "element 9: expected a list of 2, found more"),
        ("[[1,2,3],4]", "element 3: invalid type: integer `4`, expected a list of 3"),
        ("[1,[2]]", "element 1: invalid type: sequence, expected i32"),
        ("[[[1]]]", "data of 3 nested lists, expected one list or as many as shape [2,3] has dims"),
        ("{}", "data of 0 nested lists, expected one list or as many as shape [2,3] has dims"),
    ] {
        assert_eq!(input(any(DType::I32), &json("INT32", "[2,3]", data), b"").unwrap_err(), format!("input \"x\": {says}"));
    }
}

#[test]
fn deep_nesting_and_broken_text_are_errors_of_the_request() {
    let deep = json("INT32", "[1]", &"[".repeat(100_000));
    assert!(input(any(DType::I32), &deep, b"").is_err());
    let deep = format!("{{\"parameters\":{{\"x\":{}{}}},\"inputs\":[]}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(input(any(DType::I32), &deep, b"").unwrap_err().contains("recursion limit"));
    for broken in [&b""[..], b"{", b"[]", b"{}", b"null", b"{\"inputs\":1}", b"\xff\xfe", b"{\"inputs\":[{\"name\":\"x\"}]}"] {
        let e = parse(&interface(vec![any(DType::I32)]), broken, Bytes::new()).unwrap_err();
        assert_eq!(e.status(), 400, "{broken:?}: {e}");
    }
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let fixed = || port("x", DType::I64, &[None, Some(3)]);
    let says = |text: &str| input(fixed(), text, b"").unwrap_err();
    assert_eq!(says(&json("INT64", "[1,2]", "[1,2]")), "input \"x\": expected INT64[-1,3], found INT64[1,2]");
    assert_eq!(says(&json("INT32", "[1,3]", "[1,2,3]")), "input \"x\": expected INT64[-1,3], found INT32[1,3]");
    assert_eq!(says(&json("FP8", "[1,3]", "[1,2,3]")), "input \"x\": the datatype \"FP8\" is none of the protocol");
    assert_eq!(says(&json("INT64", "[-1,3]", "[1,2,3]")), "input \"x\": a shape is a list of numbers from 0 on, found [-1,3]");
    assert_eq!(says(r#"{"inputs":[]}"#), "input \"x\": it is missing, expected INT64[-1,3]");
    assert_eq!(
        says(&json("INT64", "[1,3]", "[1,2,3]").replace("\"x\"", "\"w\"")),
        "input \"w\": the model has no such input; it has \"x\""
    );
    let one = r#"{"name":"x","datatype":"INT64","shape":[1,3],"data":[1,2,3]}"#;
    assert_eq!(says(&format!("{{\"inputs\":[{one},{one}]}}")), "input \"x\" is given twice");
    let asks = |outputs: &str| says(&format!("{{\"inputs\":[{one}],\"outputs\":[{outputs}]}}"));
    assert_eq!(asks(r#"{"name":"q"}"#), "output \"q\": the model has no such output; it has \"y\", \"z\"");
    assert_eq!(asks(r#"{"name":"y"},{"name":"y"}"#), "output \"y\": it is asked for twice");
    assert_eq!(
        asks(r#"{"name":"y","parameters":{"classification":3}}"#),
        "output \"y\": the parameter \"classification\" is not supported"
    );
    let huge = json("INT64", "[4294967296,4294967296,4294967296]", "[]");
    assert!(input(any(DType::I64), &huge, b"").unwrap_err().ends_with("is too large"));
}

/// A request for binary input: a JSON text with the size, and the bytes.
fn sized(datatype: &str, shape: &str, size: usize) -> String {
    format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"parameters":{{"binary_data_size":{size}}}}}]}}"#)
}

#[test]
fn binary_data_is_taken_as_it_stands() {
    let bytes = [1u8, 0, 0, 0, 0, 0, 32, 0, 255, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(input(any(DType::I64), &sized("INT64", "[2]", 16), &bytes), Ok(Tensor::vector(vec![(1i64 << 53) + 1, -1])));
    assert_eq!(input(any(DType::BF16), &sized("BF16", "[1]", 2), &[0x80, 0x3f]), Ok(Tensor::vector(vec![bf16::ONE])));
    assert_eq!(input(any(DType::Bool), &sized("BOOL", "[2]", 2), &[0, 1]), Ok(Tensor::vector(vec![false, true])));
    let texts = b"\x02\0\0\0ab\0\0\0\0\x03\0\0\0\xe2\x82\xac";
    let want = Tensor::vector(["ab", "", "€"].map(String::from).to_vec());
    assert_eq!(input(any(DType::String), &sized("BYTES", "[3]", 17), texts), Ok(want));
    for (dtype, kind, shape, size, bytes, says) in [
        (DType::I64, "INT64", "[2]", 16, &bytes[..15], "expected 16 bytes of binary data, found 15"),
        (DType::I64, "INT64", "[2]", 8, &bytes[..8], "INT64[2] needs 16 bytes, found 8"),
        (DType::Bool, "BOOL", "[2]", 2, &[0, 2], "element 1: a BOOL is a byte 0 or 1, found 2"),
        (DType::String, "BYTES", "[1]", 3, b"\x01\0\0", "element 0: the bytes end within it"),
        (DType::String, "BYTES", "[1]", 5, b"\x09\0\0\0a", "element 0: the bytes end within it"),
        (DType::String, "BYTES", "[1]", 5, b"\x01\0\0\0\xff", "element 0 is not UTF-8"),
        (DType::String, "BYTES", "[2]", 5, b"\x01\0\0\0a", "shape [2] needs 2 elements, found 1"),
    ] {
        assert_eq!(input(any(dtype), &sized(kind, shape, size), bytes).unwrap_err(), format!("input \"x\": {says}"));
    }
    let left = input(any(DType::I64), &sized("INT64", "[1]", 8), &bytes).unwrap_err();
    assert_eq!(left, "8 bytes of binary data are left that no input has");
    let both = sized("INT64", "[1]", 8).replace("\"parameters\"", "\"data\":[1],\"parameters\"");
    assert_eq!(input(any(DType::I64), &both, &bytes[..8]).unwrap_err(), "input \"x\": it has both data and binary_data_size");
    let negative = sized("INT64", "[1]", 8).replace("\":8", "\":-8");
    assert_eq!(input(any(DType::I64), &negative, b"").unwrap_err(), "input \"x\": binary_data_size is -8");
}

/// What a request for these outputs is answered, where they are `y` and `z`.
fn answer(asks: &str) -> Result<Answer, Refusal> {
    let interface = interface(vec![]);
    let request = parse(&interface, asks.as_bytes(), Bytes::new())?;
    let y = Tensor::vector(vec![0.1f32, -0.0, 1e20, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let z = Tensor::new([1, 2], vec![9_007_199_254_740_993i64, -1]).unwrap();
    print(&interface, &request, &[("y".into(), Value::from(y)), ("z".into(), z.into())])
}

#[test]
fn answers_are_printed_as_they_were_asked_for() {
    let text = |asks: &str| String::from_utf8(answer(asks).unwrap().body.to_vec()).unwrap();
    assert_eq!(
        text(r#"{"id":"a\"b","inputs":[]}"#),
        concat!(
            r#"{"id":"a\"b","model_name":"m","model_version":"1","outputs":["#,
            r#"{"name":"y","datatype":"FP32","shape":[6],"data":[0.1,-0.0,1e+20,NaN,Infinity,-Infinity]},"#,
            r#"{"name":"z","datatype":"INT64","shape":[1,2],"data":[9007199254740993,-1]}]}"#
        )
    );
    let one = text(r#"{"inputs":[],"outputs":[{"name":"z"}],"parameters":{"unknown":[1]}}"#);
    assert_eq!(
        one,
        r#"{"model_name":"m","model_version":"1","outputs":[{"name":"z","datatype":"INT64","shape":[1,2],"data":[9007199254740993,-1]}]}"#
    );
}

#[test]
fn binary_answers_stand_behind_their_json() {
    let asks = r#"{"inputs":[],"outputs":[{"name":"z","parameters":{"binary_data":true}},{"name":"y","parameters":{"binary_data":false}}],"parameters":{"binary_data_output":true}}"#;
    let found = answer(asks).unwrap();
    let json = found.json.unwrap();
    let head: &[u8] = br#"{"model_name":"m","model_version":"1","outputs":[{"name":"z","datatype":"INT64","shape":[1,2],"parameters":{"binary_data_size":16}},{"name":"y","#;
    assert!(found.body.starts_with(head));
    assert_eq!(&found.body[json..], b"\x01\0\0\0\0\0\x20\0\xff\xff\xff\xff\xff\xff\xff\xff");
    let all = answer(r#"{"inputs":[],"parameters":{"binary_data_output":true}}"#).unwrap();
    assert_eq!(all.body.len() - all.json.unwrap(), 24 + 16);
    assert_eq!(answer(r#"{"inputs":[],"parameters":{"binary_data_output":1}}"#).unwrap_err().status(), 400);
}

#[test]
fn an_output_that_the_protocol_has_not_is_refused_unless_it_is_not_asked_for() {
    let interface = interface(vec![]);
    let packed = Tensor::from_bytes(DType::F8E4M3FN, [1], vec![0u8]).unwrap();
    let outputs = [("y".into(), packed.into()), ("z".into(), Tensor::scalar(1i64).into())];
    let asks = |text: &str| print(&interface, &parse(&interface, text.as_bytes(), Bytes::new()).unwrap(), &outputs);
    assert_eq!(asks(r#"{"inputs":[]}"#).unwrap_err().to_string(), "output \"y\": the protocol has no float8e4m3fn");
    assert!(asks(r#"{"inputs":[],"outputs":[{"name":"z"}]}"#).is_ok());
}

#[test]
fn a_model_is_described_with_its_open_dims() {
    let own = interface(vec![port("x", DType::String, &[None, Some(4)])]);
    let metadata = own.metadata();
    assert_eq!(metadata["inputs"], serde_json::json!([{ "name": "x", "datatype": "BYTES", "shape": [-1, 4] }]));
    assert_eq!((&metadata["name"], &metadata["versions"]), (&"m".into(), &serde_json::json!(["1"])));
    assert_eq!(
        own.config(Some(8))["input"],
        serde_json::json!([{ "name": "x", "data_type": "TYPE_STRING", "dims": [4], "optional": false }])
    );
    assert_eq!(own.config(None)["max_batch_size"], 0);
    assert!(own.counts_samples());
    assert!(!interface(vec![port("x", DType::F32, &[Some(1), None])]).counts_samples());
    assert!(!interface(vec![any(DType::F32)]).counts_samples() && !interface(vec![]).counts_samples());
}
