//! Pictures of models: what is drawn (`scene`), where it stands (`layout`), and how it is written (`svg`, `html`,
//! `dot`). `changes` says what differs between two models, for pictures and texts.

pub mod changes;
mod dot;
mod html;
mod layout;
mod scene;
mod svg;

pub use scene::{Change, Scene};

use crate::ir::Model;

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Graphviz's language: it places the nodes itself.
    Dot,
    /// A page with the picture, to move and to search in; it needs nothing else.
    Html,
    /// A picture.
    Svg,
}

/// Draws a model.
pub fn draw(model: &Model, form: Form) -> String {
    write(&Scene::of(model), form)
}

/// Draws what became of a model: what was added, removed and changed stands out.
pub fn draw_changes(old: &Model, new: &Model, form: Form) -> String {
    write(&Scene::of_both(old, new), form)
}

fn write(scene: &Scene, form: Form) -> String {
    match form {
        Form::Dot => dot::write(scene),
        Form::Html => html::write(scene),
        Form::Svg => svg::write(scene),
    }
}
