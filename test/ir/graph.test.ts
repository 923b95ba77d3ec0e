import { describe, expect, test } from 'vitest';
import { Graph, tensorType, type Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';

const scalar = tensorType('f32', []);

/** An If whose branch holds another If whose branch gives out `captured`, a value of the outer graph. */
function nestedIf(graph: Graph, captured: Value): Value {
  const branch = (name: string, parent: Graph, output: (inner: Graph) => Value): Graph => {
    const inner = new Graph(name, parent);
    inner.outputs.push(output(inner));
    return inner;
  };
  const condition = graph.addConstant('condition', Tensor.of('bool', [], [1]));
  const other = (inner: Graph): Value => inner.addConstant('other', Tensor.scalar('f32', 1));
  const innerIf = (scope: Graph): Value =>
    scope.emit('If', [condition], {
      type: scalar,
      attributes: {
        then_branch: { kind: 'graph', value: branch('inner_then', scope, () => captured) },
        else_branch: { kind: 'graph', value: branch('inner_else', scope, other) },
      },
    });
  return graph.emit('If', [condition], {
    type: scalar,
    attributes: {
      then_branch: { kind: 'graph', value: branch('outer_then', graph, innerIf) },
      else_branch: { kind: 'graph', value: branch('outer_else', graph, other) },
    },
  });
}

describe('prune', () => {
  test('keeps what a subgraph of a subgraph gives out', () => {
    const graph = new Graph('g');
    const x = graph.addInput('x', scalar);
    const captured = graph.emit('Relu', [x], { name: 'captured', type: scalar });
    const constant = graph.addConstant('constant', Tensor.scalar('f32', 2));
    graph.outputs.push(nestedIf(graph, captured), nestedIf(graph, constant));
    expect(graph.prune()).toBe(0);
    expect(captured.producer?.op).toBe('Relu');
    expect(graph.find('constant')).toBe(constant);
  });
  test('takes away what nothing reads, and what only that read', () => {
    const graph = new Graph('g');
    const x = graph.addInput('x', scalar);
    const dead = graph.emit('Add', [graph.emit('Relu', [x]), graph.addConstant('c', Tensor.scalar('f32', 1))]);
    graph.outputs.push(graph.emit('Neg', [x]));
    nestedIf(graph, dead);
    expect(graph.prune()).toBe(3);
    expect(graph.nodes.map((node) => node.op)).toEqual(['Neg']);
    expect([...graph.values].map(({ name }) => name)).toEqual(['x', graph.outputs[0]!.name]);
    expect(x.uses.size).toBe(1);
  });
});

describe('uses', () => {
  test('follow inputs that are set, cleared and cut off', () => {
    const graph = new Graph('g');
    const [a, b] = [graph.addInput('a', scalar), graph.addInput('b', scalar)];
    const node = graph.emit('Sum', [a, a, b]).producer!;
    expect([a.uses.size, b.uses.size, a.consumers.length]).toEqual([2, 1, 1]);
    node.setInput(1, b);
    node.setInput(3, a);
    expect([...a.uses].map(({ index }) => index)).toEqual([0, 3]);
    expect([...b.uses].map(({ index }) => index).sort()).toEqual([1, 2]);
    node.setInput(0, a);
    expect(a.uses.size).toBe(2);
    node.truncateInputs(1);
    expect(node.inputs).toEqual([a]);
    expect([a.uses.size, b.uses.size]).toEqual([1, 0]);
    node.setInput(0, undefined);
    expect(a.uses.size).toBe(0);
  });

  test('a value with 30,000 readers is replaced in a moment', () => {
    const graph = new Graph('g');
    const [a, b] = [graph.addInput('a', scalar), graph.addInput('b', scalar)];
    for (let i = 0; i < 30_000; i++) graph.addNode({ op: 'Neg', inputs: [a], outputs: [undefined] });
    const started = performance.now();
    // Last readers first: a scan for each would be half a billion steps.
    for (const use of [...a.uses].reverse()) use.node.setInput(use.index, b);
    graph.replaceUses(b, a);
    expect(performance.now() - started).toBeLessThan(1000);
    expect([a.uses.size, b.uses.size]).toEqual([30_000, 0]);
  });
});
