//! The truth here is `onnx.helper.make_tensor` and `onnx.numpy_helper.from_array` of onnx 1.23.2: the messages that they
//! write for the same five elements of each dtype.

use super::*;
use prost::Message;
use std::fmt::Write;

/// Dtype, the first four elements (the fifth is the first again), the typed and the raw message.
const WRITTEN: [(DType, &str, &str, &str); 25] = [
    (
        DType::F32,
        "0.25 -1.5 inf 2",
        "0805100122140000803e0000c0bf0000807f000000400000803e420174",
        "080510014201744a140000803e0000c0bf0000807f000000400000803e",
    ),
    (
        DType::F64,
        "0.1 -1.5 2 1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        "0805100b42017452289a9999999999b93f000000000000f8bf00000000000000409c7500883ce4377e9a9999999999b93f",
        "0805100b4201744a289a9999999999b93f000000000000f8bf00000000000000409c7500883ce4377e9a9999999999b93f",
    ),
    (DType::F16, "0.25 0.5 1 -2", "0805100a2a0b8068807080788080038068420174", "0805100a4201744a0a00340038003c00c00034"),
    (DType::BF16, "0.25 0.5 1 -2", "080510102a0b807d807e807f808003807d420174", "080510104201744a0a803e003f803f00c0803e"),
    (
        DType::I8,
        "-128 -1 0 127",
        "080510032a2080ffffffffffffffff01ffffffffffffffffff01007f80ffffffffffffffff01420174",
        "080510034201744a0580ff007f80",
    ),
    (DType::U8, "0 1 128 255", "080510022a0700018001ff0100420174", "080510024201744a05000180ff00"),
    (
        DType::I16,
        "-32768 -1 0 32767",
        "080510052a228080feffffffffffff01ffffffffffffffffff0100ffff018080feffffffffffff01420174",
        "080510054201744a0a0080ffff0000ff7f0080",
    ),
    (DType::U16, "0 1 40000 65535", "080510042a090001c0b802ffff0300420174", "080510044201744a0a00000100409cffff0000"),
    (
        DType::I32,
        "-2147483648 -1 0 7",
        "080510062a2080808080f8ffffffff01ffffffffffffffffff01000780808080f8ffffffff01420174",
        "080510064201744a1400000080ffffffff000000000700000000000080",
    ),
    (
        DType::U32,
        "0 1 4000000000 4294967295",
        "0805100c4201745a0d000180d0acf30effffffff0f00",
        "0805100c4201744a14000000000100000000286beeffffffff00000000",
    ),
    (
        DType::I64,
        "-9223372036854775808 -1 0 7",
        "080510073a2080808080808080808001ffffffffffffffffff01000780808080808080808001420174",
        "080510074201744a280000000000000080ffffffffffffffff000000000000000007000000000000000000000000000080",
    ),
    (
        DType::U64,
        "0 1 9223372036854775808 18446744073709551615",
        "0805100d4201745a17000180808080808080808001ffffffffffffffffff0100",
        "0805100d4201744a28000000000000000001000000000000000000000000000080ffffffffffffffff0000000000000000",
    ),
    (DType::Bool, "1 0 1 1", "080510092a050100010101420174", "080510094201744a050100010101"),
    (
        DType::C64,
        "1+2i -0-3.5i 0.25+0i 0+0i",
        "0805100e22280000803f0000004000000080000060c00000803e0000000000000000000000000000803f00000040420174",
        "0805100e4201744a280000803f0000004000000080000060c00000803e0000000000000000000000000000803f00000040",
    ),
    (
        DType::C128,
        "1+2i -0-3.5i 0.25+0i 0+0i",
        "0805100f4201745250000000000000f03f000000000000004000000000000000800000000000000cc0000000000000d03f000000000000000000000000000000000000000000000000000000000000f03f0000000000000040",
        "0805100f4201744a50000000000000f03f000000000000004000000000000000800000000000000cc0000000000000d03f000000000000000000000000000000000000000000000000000000000000f03f0000000000000040",
    ),
    (DType::F8E4M3FN, "0.25 -1.5 448 0", "080510112a0628bc017e0028420174", "080510114201744a0528bc7e0028"),
    (DType::F8E4M3FNUZ, "0.25 -1.5 240 0", "080510122a0630c4017f0030420174", "080510124201744a0530c47f0030"),
    (DType::F8E5M2, "0.25 -1.5 57344 0", "080510132a0634be017b0034420174", "080510134201744a0534be7b0034"),
    (DType::F8E5M2FNUZ, "0.25 -1.5 57344 0", "080510142a0638c2017f0038420174", "080510144201744a0538c27f0038"),
    (DType::U4, "0 1 15 9", "080510152a04109f0100420174", "080510154201744a03109f00"),
    (DType::I4, "-8 -1 7 3", "080510162a04f8013708420174", "080510164201744a03f83708"),
    (DType::F4E2M1, "0.5 -1.5 6 0", "080510172a04b1010701420174", "080510174201744a03b10701"),
    (DType::F8E8M0, "1 2 0.25 4", "080510182a077f80017d81017f420174", "080510184201744a057f807d817f"),
    (DType::U2, "0 1 3 2", "080510192a03b40100420174", "080510194201744a02b400"),
    (DType::I2, "-2 -1 0 1", "0805101a2a024e02420174", "0805101a4201744a024e02"),
];

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn read(message: &Bytes) -> (Tensor, Encoding, TensorProto) {
    let mut proto = TensorProto::decode(message.clone()).unwrap();
    let (tensor, encoding) = decode(&mut proto, &ExternalFiles::none()).unwrap();
    (tensor, encoding, proto)
}

/// The first four elements; complex ones by their parts.
fn shown(t: &Tensor) -> String {
    let mut out = String::new();
    let mut put = |x: &dyn std::fmt::Display| write!(out, "{x} ").unwrap();
    match t.dtype() {
        DType::C64 => t.to_slice::<Complex32>().unwrap()[..4].iter().for_each(|x| put(x)),
        DType::C128 => t.to_slice::<Complex64>().unwrap()[..4].iter().for_each(|x| put(x)),
        DType::F64 => t.to_slice::<f64>().unwrap()[..4].iter().for_each(|x| put(x)),
        DType::U64 => t.to_slice::<u64>().unwrap()[..4].iter().for_each(|x| put(x)),
        d if d.is_float() => t.to_f32s().unwrap()[..4].iter().for_each(|x| put(x)),
        _ => t.to_i64s().unwrap()[..4].iter().for_each(|x| put(x)),
    }
    out.trim_end().to_string()
}

#[test]
fn typed_and_raw_decode_alike_and_are_written_back_byte_for_byte() {
    for (dtype, values, typed, raw) in WRITTEN {
        let mut bytes = Vec::new();
        for (message, form) in [(unhex(typed), Encoding::Typed), (unhex(raw), Encoding::Raw)] {
            let (tensor, encoding, mut shell) = read(&message);
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(tensor.shape()[..], [5], "{dtype}");
            assert_eq!(shown(&tensor), values, "{dtype} {form:?}");
            encode(&mut shell, &tensor, &encoding).unwrap();
            assert_eq!(shell.encode_to_vec(), message, "{dtype} {form:?}");
            bytes.push(tensor.bytes().unwrap().to_vec());
            // Into the other form and back.
            let other = if encoding == Encoding::Raw { Encoding::Typed } else { Encoding::Raw };
            let mut proto = TensorProto::default();
            encode(&mut proto, &tensor, &other).unwrap();
            assert_eq!(decode(&mut proto, &ExternalFiles::none()).unwrap(), (tensor, other), "{dtype}");
        }
        assert_eq!(bytes[0], bytes[1], "{dtype}");
    }
}

#[test]
fn raw_elements_are_a_view_on_the_message() {
    let message = unhex("0805100122140000803e0000c0bf0000807f000000400000803e420174");
    let raw = unhex("080510014201744a140000803e0000c0bf0000807f000000400000803e");
    assert!(!raw.as_ptr_range().contains(&read(&message).0.bytes().unwrap().as_ptr()));
    assert!(raw.as_ptr_range().contains(&read(&raw).0.bytes().unwrap().as_ptr()));
}

#[test]
fn strings_are_read_and_written() {
    let message = unhex("080210083201613202c3a9420174");
    let (tensor, encoding, mut shell) = read(&message);
    assert_eq!(tensor.as_slice::<String>().unwrap(), ["a", "é"]);
    assert_eq!(encoding, Encoding::Typed);
    encode(&mut shell, &tensor, &Encoding::Raw).unwrap();
    assert_eq!(shell.encode_to_vec(), message);
}

/// A half-width table decodes alike from its three forms.
fn half_table(dtype: DType, bits: [u16; 4]) {
    let dir = tempfile::tempdir().unwrap();
    let raw: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    std::fs::write(dir.path().join("m.onnx"), "").unwrap();
    std::fs::write(dir.path().join("w.bin"), [&[0; 16], &raw[..]].concat()).unwrap();
    let files = ExternalFiles::of_model(&dir.path().join("m.onnx")).unwrap();
    let base = TensorProto { dims: vec![2, 2], data_type: Some(dtype.to_onnx()), name: Some("w".into()), ..Default::default() };
    let entry = |k: &str, v: &str| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    let protos = [
        TensorProto { raw_data: Some(raw.clone().into()), ..base.clone() },
        TensorProto { int32_data: bits.iter().map(|&b| b.into()).collect(), ..base.clone() },
        TensorProto {
            external_data: vec![entry("location", "w.bin"), entry("offset", "16"), entry("length", "8"), entry("checksum", "x")],
            data_location: Some(1),
            ..base
        },
    ];
    for proto in protos {
        let mut shell = proto.clone();
        let (tensor, encoding) = decode(&mut shell, &files).unwrap();
        assert_eq!(tensor.to_f32s().unwrap(), [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(tensor.bytes().unwrap(), raw);
        encode(&mut shell, &tensor, &encoding).unwrap();
        assert_eq!(shell, proto);
    }
}

#[test]
fn a_bfloat16_table_decodes_alike_from_its_three_forms() {
    half_table(DType::BF16, [0x3e80, 0x3f00, 0x3f80, 0x4000]);
}

#[test]
fn a_float16_table_decodes_alike_from_its_three_forms() {
    half_table(DType::F16, [0x3400, 0x3800, 0x3c00, 0x4000]);
}

#[test]
fn a_spelled_out_default_stays() {
    let proto =
        TensorProto { dims: vec![0], data_type: Some(1), data_location: Some(0), raw_data: Some(Bytes::new()), ..Default::default() };
    let mut shell = proto.clone();
    let (tensor, encoding) = decode(&mut shell, &ExternalFiles::none()).unwrap();
    encode(&mut shell, &tensor, &encoding).unwrap();
    assert_eq!(shell, proto);
}

#[test]
fn what_is_wrong_is_named() {
    let base = TensorProto { dims: vec![2, 2], data_type: Some(1), name: Some("w".into()), ..Default::default() };
    let raw = |n: usize| Some(Bytes::from(vec![0; n]));
    let check = |mut proto: TensorProto, want: &str| {
        let error = decode(&mut proto, &ExternalFiles::none()).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor \"w\": {want}"));
    };
    check(TensorProto { raw_data: raw(8), ..base.clone() }, "float32[2,2] needs 16 bytes, found 8");
    check(TensorProto { float_data: vec![1.0], ..base.clone() }, "float32[2,2] needs 4 entries in float_data, found 1");
    check(base.clone(), "float32[2,2] needs 4 entries in float_data, found 0");
    check(TensorProto { float_data: vec![1.0; 4], raw_data: raw(16), ..base.clone() }, "elements in both float_data and raw_data");
    check(TensorProto { float_data: vec![1.0; 4], int32_data: vec![1], ..base.clone() }, "elements in both float_data and int32_data");
    check(
        TensorProto { double_data: vec![1.0; 4], ..base.clone() },
        "elements of float32 must be in float_data, found them in double_data",
    );
    check(TensorProto { dims: vec![-2, -2], ..base.clone() }, "dim 0 of [-2, -2] is negative");
    check(TensorProto { dims: vec![1 << 32, 1 << 32], ..base.clone() }, "the size of float32[4294967296,4294967296] does not fit 63 bits");
    check(
        TensorProto { dims: vec![1 << 62, 1], raw_data: raw(16), ..base.clone() },
        "the size of float32[4611686018427387904,1] does not fit 63 bits",
    );
    check(
        TensorProto { dims: vec![1 << 40], raw_data: raw(16), ..base.clone() },
        "float32[1099511627776] needs 4398046511104 bytes, found 16",
    );
    check(TensorProto { data_type: Some(99), ..base.clone() }, "data_type 99 is not one of 1 to 26");
    check(TensorProto { data_type: None, ..base.clone() }, "data_type 0 is not one of 1 to 26");
    check(TensorProto { segment: Some(Default::default()), ..base.clone() }, "a segment of a larger tensor, which is not supported");
    check(TensorProto { data_location: Some(7), ..base.clone() }, "data_location 7 is not 0 or 1");
    check(TensorProto { data_location: Some(1), raw_data: raw(16), ..base.clone() }, "elements in both raw_data and external data");
    check(TensorProto { data_location: Some(1), ..base.clone() }, "external data without a location");
    check(
        TensorProto { data_type: Some(8), raw_data: raw(4), ..base.clone() },
        "strings must be in string_data, found them in raw or external data",
    );
    let bad = Bytes::from_static(&[0xff]);
    check(TensorProto { data_type: Some(8), dims: vec![1], string_data: vec![bad], ..base.clone() }, "string_data[0] is not UTF-8");
    check(TensorProto { data_type: Some(3), dims: vec![1], int32_data: vec![300], ..base.clone() }, "int32_data[0] = 300 is no int8");
    check(
        TensorProto { data_type: Some(9), dims: vec![1], int32_data: vec![2], ..base.clone() },
        "int32_data[0] of bool must be 0 or 1, found 2",
    );
    check(
        TensorProto { data_type: Some(9), dims: vec![1], raw_data: Some(Bytes::from_static(&[2])), ..base },
        "element 0 of bool must be 0 or 1, found 2",
    );
}
