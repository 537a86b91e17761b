//! A pass of one's own: `Relu(Relu(x))` becomes `Relu(x)`.

use graphtool::ir::{Model, NodeId, parse_model, print_graph};
use graphtool::passes::{Changed, DeadCode, Pass, PassError, Pipeline, Report};

struct ReluOnce;

impl Pass for ReluOnce {
    fn name(&self) -> &'static str {
        "relu-once"
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let graph = &mut model.graph;
        let relu = |id: NodeId| graph.node(id).op().is_some_and(|op| op.is("Relu"));
        let doubled: Vec<_> = graph
            .ops()
            .iter()
            .filter_map(|&id| Some((id, graph.node(id).input(0)?)))
            .filter(|&(id, input)| relu(id) && relu(input.node))
            .collect();
        if doubled.is_empty() {
            return Ok(Changed::No);
        }
        let mut edit = graph.edit("relu-once");
        for (id, input) in doubled {
            edit.replace_uses(id.value(0), input);
            edit.remove(id);
        }
        edit.commit(&mut names)?;
        Ok(Changed::Yes)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut model = parse_model("graph g(x: float32[n]) -> (y) {\n  a = Relu(x)\n  b = Relu(a)\n  y = Neg(b)\n}")?;
    Pipeline::new().with(ReluOnce).with(DeadCode).run(&mut model, &mut Report::default())?;
    print!("{}", print_graph(&model.graph));
    assert!(!print_graph(&model.graph).contains("b ="));
    Ok(())
}
