//! The messages of [onnx.proto](https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3) that are read here, with the
//! fields that are used.

use prost::Message;

use crate::error::{Error, ErrorKind, Result, bail};

/// Numbers of the fields of `ModelProto` and `GraphProto`.
pub(super) mod field {
    pub(in super::super) const MODEL_IR_VERSION: u64 = 1;
    pub(in super::super) const MODEL_GRAPH: u64 = 7;
    pub(in super::super) const MODEL_OPSET: u64 = 8;
    pub(in super::super) const MODEL_FUNCTIONS: u64 = 25;
    pub(in super::super) const GRAPH_NODE: u64 = 1;
    pub(in super::super) const GRAPH_INITIALIZER: u64 = 5;
    pub(in super::super) const GRAPH_INPUT: u64 = 11;
    pub(in super::super) const GRAPH_OUTPUT: u64 = 12;
    pub(in super::super) const GRAPH_SPARSE_INITIALIZER: u64 = 15;
    pub(in super::super) const NODE_ATTRIBUTE: u64 = 5;
    pub(in super::super) const ATTRIBUTE_TENSOR: u64 = 5;
    pub(in super::super) const ATTRIBUTE_GRAPH: u64 = 6;
    pub(in super::super) const ATTRIBUTE_TENSORS: u64 = 10;
    pub(in super::super) const ATTRIBUTE_GRAPHS: u64 = 11;
    pub(in super::super) const ATTRIBUTE_SPARSE_TENSOR: u64 = 22;
    pub(in super::super) const FUNCTION_NODE: u64 = 7;
    pub(in super::super) const FUNCTION_OPSET: u64 = 9;
    pub(in super::super) const FUNCTION_ATTRIBUTE_DEFAULT: u64 = 11;
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub(super) domain: String,
    #[prost(string, tag = "8")]
    pub(super) overload: String,
}

/// A function of the model without its nodes, defaults and imports.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FunctionHead {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "10")]
    pub(super) domain: String,
    #[prost(string, tag = "13")]
    pub(super) overload: String,
}

/// Without tensors and graphs, which are read apart.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(float, optional, tag = "2")]
    pub(super) f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub(super) i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub(super) s: Option<Vec<u8>>,
    // Not packed, as the first version of protobuf has it and some readers insist on.
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub(super) floats: Vec<f32>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub(super) ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub(super) strings: Vec<Vec<u8>>,
    #[prost(int32, tag = "20")]
    pub(super) r#type: i32,
    #[prost(string, tag = "21")]
    pub(super) ref_attr_name: String,
}

impl AttributeProto {
    pub(super) const FLOAT: i32 = 1;
    pub(super) const INT: i32 = 2;
    pub(super) const STRING: i32 = 3;
    pub(super) const FLOATS: i32 = 6;
    pub(super) const INTS: i32 = 7;
    pub(super) const STRINGS: i32 = 8;

    /// Whether the attribute is of this type; a file that does not tell has a value of it and of no other.
    pub(super) fn is(&self, kind: i32) -> bool {
        let has = [
            (Self::FLOAT, self.f.is_some()),
            (Self::INT, self.i.is_some()),
            (Self::STRING, self.s.is_some()),
            (Self::FLOATS, !self.floats.is_empty()),
            (Self::INTS, !self.ints.is_empty()),
            (Self::STRINGS, !self.strings.is_empty()),
        ];
        let no_other = has.iter().all(|(of, has)| *of == kind || !has);
        no_other && (self.r#type == kind || self.r#type == 0)
    }
}

/// A tensor without its content, which stays in the file's bytes; see `tensor.rs`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorHead {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub(super) dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(string, tag = "8")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "13")]
    pub(super) external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    pub(super) data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub(super) domain: String,
    #[prost(int64, tag = "2")]
    pub(super) version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub(super) tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub(super) elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub(super) dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub(super) dim_param: Option<String>,
}

/// Decodes a small message. A hostile one of many empty parts, at whatever depth, would take far more memory than it has
/// bytes, so its size is limited: names, shapes and attributes are never this large.
pub(super) fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M> {
    const MOST_BYTES: usize = 1 << 20;
    if bytes.len() > MOST_BYTES {
        bail!(InvalidFile, "{what}: expected at most {MOST_BYTES} bytes of names and shapes, found {}", bytes.len());
    }
    M::decode(bytes).map_err(|e| Error::new(ErrorKind::InvalidFile, format!("{what}: not a valid message: {e}")))
}
