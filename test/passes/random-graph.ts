import { Graph, intAttribute, intsAttribute, Module, tensorType, type Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { seededUniform } from '../../compiler/ir/text-data.ts';

/**
 * Modules that the reference engine can evaluate, full of what passes look for: identities, repeated nodes, constants to
 * fold, transposes that undo each other, written-out norms and activations, branches, values with encodings. All values
 * are f32[4,4], so that any of them fits anywhere.
 */
export function randomGraph(seed: number): Module {
  const draw = seededUniform(seed);
  const below = (count: number): number => Math.floor(draw() * count);
  const module = new Module();
  module.opsets.set('', 24);
  const graph = new Graph('main');
  module.graphs.push(graph);
  const type = tensorType('f32', [4, 4]);
  const values: Value[] = [graph.addInput('x', type), graph.addInput('y', type)];
  const matrix = (): Tensor =>
    Tensor.of(
      'f32',
      [4, 4],
      Float32Array.from({ length: 16 }, () => draw() - 0.5),
    );
  for (let i = 0; i < 3; i++) values.push(graph.addConstant(`w${i}`, matrix()));
  values.push(graph.addConstant('again', values[2]!.data!));
  const scope = { graph, values, flag: graph.addInput('flag', tensorType('bool', [])) };
  const count = 4 + below(16);
  for (let i = 0; i < count; i++) addSomething(scope, draw);
  for (const value of graph.values)
    if (value.type === type && below(8) === 0) value.encoding = { dtype: 'u8', scale: Float32Array.of(0.1) };
  const computed = [...graph.values].filter((value) => value.producer && value.type === type);
  for (let i = 0; i < 1 + below(3) && computed.length > 0; i++) graph.outputs.push(computed[below(computed.length)]!);
  return module;
}

interface Scope {
  readonly graph: Graph;
  /** Everything of shape [4,4] that is visible. */
  readonly values: Value[];
  readonly flag: Value;
}

/** One more value, made in one of the ways that passes rewrite. */
function addSomething(scope: Scope, draw: () => number): void {
  const { graph, values, flag } = scope;
  const pick = (): Value => values[Math.floor(draw() * values.length)]!;
  const type = tensorType('f32', [4, 4]);
  const emit = (op: string, inputs: Value[], attributes = {}): Value => {
    const output = graph.emit(op, inputs, { type, attributes, from: [`user_${graph.nodes.length}`] });
    values.push(output);
    return output;
  };
  const scalar = (value: number): Value => graph.addConstant('c', Tensor.scalar('f32', value));
  const integers = (list: number[]): Value => graph.addConstant('i', Tensor.of('i64', [list.length], list));
  const x = pick();
  const makers: (() => void)[] = [
    () => emit('Identity', [x]),
    () => emit('Relu', [x]),
    () => emit('Neg', [emit('Neg', [x])]),
    () => emit('Add', [x, pick()]),
    () => emit('Add', [x, scalar(draw() < 0.5 ? 0 : 1)]),
    () => emit('Mul', [scalar(1), x]),
    () => emit('Mul', [x, emit('Sigmoid', [x])]),
    () => emit('Swish', [x]),
    () => emit('Gelu', [x]),
    () => emit('MatMul', [x, pick()]),
    () => emit('Add', [emit('MatMul', [x, pick()]), pick()]),
    () => emit('Mul', [emit('MatMul', [x, pick()]), scalar(0.5)]),
    () => emit('Gemm', [x, pick(), pick()], { transB: intAttribute(draw() < 0.5 ? 1 : 0) }),
    () => emit('Transpose', [x], { perm: intsAttribute([1, 0]) }),
    () => emit('Transpose', [emit('Transpose', [x], { perm: intsAttribute([1, 0]) })], { perm: intsAttribute([1, 0]) }),
    () => emit('Reshape', [emit('Flatten', [x]), integers([4, 4])]),
    () => emit('Cast', [x], { to: intAttribute(1) }),
    () => emit('Softmax', [x]),
    () => {
      const [a, b] = [
        graph.addValue('part', tensorType('f32', [2, 4])),
        graph.addValue('part', tensorType('f32', [2, 4])),
      ];
      graph.addNode({ op: 'Split', inputs: [x], outputs: [a, b], attributes: { num_outputs: intAttribute(2) } });
      emit('Concat', draw() < 0.5 ? [a, b] : [b, a], { axis: intAttribute(0) });
    },
    () => {
      const square = emit('Mul', [x, x]);
      const mean = graph.emit('ReduceMean', [square, integers([-1])]);
      const root = graph.emit('Sqrt', [graph.emit('Add', [mean, scalar(1e-5)])]);
      emit('Mul', [emit('Div', [x, root]), graph.addConstant('g', Tensor.of('f32', [4], [1, 2, 0.5, 1]))]);
    },
    () => emit('RMSNormalization', [x, graph.addConstant('g', Tensor.of('f32', [4], [1, 2, 0.5, 1]))]),
    () => emit('LayerNormalization', [x, graph.addConstant('g', Tensor.of('f32', [4], [1, 2, 0.5, 1]))]),
    () =>
      addBranch(
        scope,
        draw,
        draw() < 0.5 ? flag : graph.addConstant('flag', Tensor.of('bool', [], [draw() < 0.5 ? 1 : 0])),
      ),
  ];
  makers[Math.floor(draw() * makers.length)]!();
}

function addBranch(scope: Scope, draw: () => number, condition: Value): void {
  const { graph, values } = scope;
  if (graph.parent?.parent) return;
  const type = tensorType('f32', [4, 4]);
  const output = graph.addValue('chosen', type);
  const branch = (name: string): Graph => {
    const inner = new Graph(name, graph);
    const visible = [...values];
    for (let i = 0; i < 1 + Math.floor(draw() * 3); i++)
      addSomething({ graph: inner, values: visible, flag: scope.flag }, draw);
    const own = visible.filter((value) => value.producer?.graph === inner);
    inner.outputs.push(own.at(-1) ?? inner.emit('Relu', [visible[0]!], { type }));
    return inner;
  };
  graph.addNode({
    op: 'If',
    inputs: [condition],
    outputs: [output],
    attributes: {
      then_branch: { kind: 'graph', value: branch('yes') },
      else_branch: { kind: 'graph', value: branch('no') },
    },
  });
  values.push(output);
}
