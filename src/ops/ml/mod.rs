//! Classical machine learning, the domain `ai.onnx.ml`: encoders and scalers, linear models, support vectors, trees, maps.

mod features;
mod linear;
mod maps;
mod scores;
mod svm;
mod trees;
mod votes;

use super::{Args, Fact, InferCtx, OpDef, OpError};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, cast};

const DOMAIN: &str = "ai.onnx.ml";

const LINEAR_CLASSIFIER: &[&str] =
    &["classlabels_ints", "classlabels_strings", "coefficients", "intercepts", "multi_class", "post_transform"];
const SVM_CLASSIFIER: &[&str] = &[
    "classlabels_ints",
    "classlabels_strings",
    "coefficients",
    "kernel_params",
    "kernel_type",
    "post_transform",
    "prob_a",
    "prob_b",
    "rho",
    "support_vectors",
    "vectors_per_class",
];
const SVM_REGRESSOR: &[&str] =
    &["coefficients", "kernel_params", "kernel_type", "n_supports", "one_class", "post_transform", "rho", "support_vectors"];
const TREE_ENSEMBLE: &[&str] = &[
    "aggregate_function",
    "leaf_targetids",
    "leaf_weights",
    "membership_values",
    "n_targets",
    "nodes_falseleafs",
    "nodes_falsenodeids",
    "nodes_featureids",
    "nodes_hitrates",
    "nodes_missing_value_tracks_true",
    "nodes_modes",
    "nodes_splits",
    "nodes_trueleafs",
    "nodes_truenodeids",
    "post_transform",
    "tree_roots",
];
const TREE_CLASSIFIER: &[&str] = &[
    "base_values",
    "base_values_as_tensor",
    "class_ids",
    "class_nodeids",
    "class_treeids",
    "class_weights",
    "class_weights_as_tensor",
    "classlabels_int64s",
    "classlabels_strings",
    "nodes_falsenodeids",
    "nodes_featureids",
    "nodes_hitrates",
    "nodes_hitrates_as_tensor",
    "nodes_missing_value_tracks_true",
    "nodes_modes",
    "nodes_nodeids",
    "nodes_treeids",
    "nodes_truenodeids",
    "nodes_values",
    "nodes_values_as_tensor",
    "post_transform",
];
const TREE_REGRESSOR: &[&str] = &[
    "aggregate_function",
    "base_values",
    "base_values_as_tensor",
    "n_targets",
    "nodes_falsenodeids",
    "nodes_featureids",
    "nodes_hitrates",
    "nodes_hitrates_as_tensor",
    "nodes_missing_value_tracks_true",
    "nodes_modes",
    "nodes_nodeids",
    "nodes_treeids",
    "nodes_truenodeids",
    "nodes_values",
    "nodes_values_as_tensor",
    "post_transform",
    "target_ids",
    "target_nodeids",
    "target_treeids",
    "target_weights",
    "target_weights_as_tensor",
];

const fn op(name: &'static str, versions: &'static [i64]) -> OpDef {
    OpDef::new(name, versions).domain(DOMAIN)
}

pub(super) const OPS: &[OpDef] = &[
    op("ArrayFeatureExtractor", &[1]).inputs(2, 2).infer(features::infer_extractor).kernel(features::build_extractor),
    op("Binarizer", &[1]).attrs(&["threshold"]).infer(super::infer::same).kernel(features::build_binarizer),
    op("CastMap", &[1]).attrs(&["cast_to", "map_form", "max_map"]).infer(maps::infer_cast).kernel(maps::build_cast),
    op("DictVectorizer", &[1]).attrs(&["int64_vocabulary", "string_vocabulary"]).infer(maps::infer_dict).kernel(maps::build_dict),
    op("FeatureVectorizer", &[1])
        .inputs(1, usize::MAX)
        .attrs(&["inputdimensions"])
        .infer(features::infer_vectorizer)
        .kernel(features::build_vectorizer),
    op("Imputer", &[1])
        .attrs(&["imputed_value_floats", "imputed_value_int64s", "replaced_value_float", "replaced_value_int64"])
        .infer(super::infer::same)
        .kernel(features::build_imputer),
    op("LinearClassifier", &[1]).outputs(2, 2).attrs(LINEAR_CLASSIFIER).infer(linear::infer_classifier).kernel(linear::build_classifier),
    op("LinearRegressor", &[1])
        .attrs(&["coefficients", "intercepts", "post_transform", "targets"])
        .infer(linear::infer_regressor)
        .kernel(linear::build_regressor),
    op("Normalizer", &[1]).attrs(&["norm"]).infer(features::infer_float).kernel(features::build_normalizer),
    op("OneHotEncoder", &[1])
        .attrs(&["cats_int64s", "cats_strings", "zeros"])
        .infer(features::infer_one_hot)
        .kernel(features::build_one_hot),
    op("SVMClassifier", &[1]).outputs(2, 2).attrs(SVM_CLASSIFIER).infer(svm::infer_classifier).kernel(svm::build_classifier),
    op("SVMRegressor", &[1]).attrs(SVM_REGRESSOR).infer(svm::infer_regressor).kernel(svm::build_regressor),
    op("Scaler", &[1]).attrs(&["offset", "scale"]).infer(features::infer_float).kernel(features::build_scaler),
    op("TreeEnsemble", &[5]).attrs(TREE_ENSEMBLE).infer(trees::infer_ensemble).kernel(trees::build_ensemble),
    op("TreeEnsembleClassifier", &[1, 3, 5])
        .outputs(2, 2)
        .attrs(TREE_CLASSIFIER)
        .infer(votes::infer_classifier)
        .kernel(votes::build_classifier),
    op("TreeEnsembleRegressor", &[1, 3, 5]).attrs(TREE_REGRESSOR).infer(votes::infer_regressor).kernel(votes::build_regressor),
    op("ZipMap", &[1]).attrs(&["classlabels_int64s", "classlabels_strings"]).infer(maps::infer_zip).kernel(maps::build_zip),
];

/// Rows of features; a vector is one row.
struct Rows {
    rows: usize,
    features: usize,
    values: Vec<f64>,
}

impl Rows {
    /// Input 0. Integers are read through `float32`, as the models were trained.
    fn read(args: &Args) -> Result<Self, OpError> {
        let x = args.tensor(0)?;
        let (rows, features) = match x.shape()[..] {
            [n] => (1, n),
            [rows, n] => (rows, n),
            _ => invalid!("input 0: expected rank 1 or 2, found {}", x.rank()),
        };
        if !(x.dtype().is_float() || x.dtype().is_int()) {
            invalid!("input 0: expected numbers, found {}", x.dtype());
        }
        let exact = if x.dtype() == DType::F64 { x.clone() } else { cast(x, DType::F32)? };
        Ok(Self { rows, features, values: cast(&exact, DType::F64)?.into_vec()? })
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.features..][..self.features]
    }
}

/// The number of rows of input 0, as far as it is known.
fn rows_dim(cx: &InferCtx) -> Result<Dim, OpError> {
    match cx.shape(0) {
        Some([_]) => Ok(Dim::Known(1)),
        Some([rows, _]) => Ok(rows.clone()),
        Some(s) => invalid!("input 0: expected rank 1 or 2, found {}", s.len()),
        None => Ok(Dim::Unknown),
    }
}

/// The type of a float result of `columns` columns.
fn infer_columns(cx: &InferCtx, columns: Option<usize>) -> Result<Fact, OpError> {
    Ok(Fact::tensor(DType::F32, [rows_dim(cx)?, columns.map_or(Dim::Unknown, Dim::Known)]))
}
