import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NpucError } from '../../compiler/errors.ts';
import { Graph, type Module, tensorType, type Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { findProblems, INVARIANTS, type Stage, verify } from '../../compiler/ir/verify.ts';
import { randomModule } from './random-module.ts';

const VALID = `npuir 1
opset 23
state k0 append f32[1,4,8] axis 1 initial 0.0
tie %past %new

graph @main
  in %x : f32[2,8]
  in %past : f32[1,3,8] q(u8, scale 0.1, zero 128)
  in %flag : bool[]
  %w : f32[8,4] q(i8, axis 1, scale [0.1, 0.2, 0.3, 0.4]) = const fill 1.0
  %h : f32[2,4] = MatMul(%x, %w)
  %r : f32[2,4] = If(%flag) {then_branch graph @yes
      %n : f32[2,4] = Neg(%h)
      out %n
    end, else_branch graph @no
      out %h
    end}
  %new : f32[1,3,8] q(u8, scale 0.1, zero 128) = Relu(%past)
  out %r
  out %new
  state k0 : %past -> %new
`;

/** The rules that a change of the valid module breaks. */
function broken(change: (graph: Graph, module: Module) => void, stage: Stage = 'imported'): string[] {
  const module = parseModule(VALID);
  change(module.graph(), module);
  return findProblems(module, stage).map(({ invariant, where, message }) => `${invariant}: ${where}: ${message}`);
}

function value(graph: Graph, name: string): Value {
  const found = graph.find(name);
  if (!found) throw new Error(name);
  return found;
}

describe('verify', () => {
  it('accepts a valid module at every stage', () => {
    for (const stage of ['imported', 'frozen', 'quantized'] as const) verify(parseModule(VALID), stage);
  });

  it('accepts random modules that use every construct', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        expect(findProblems(randomModule(seed))).toEqual([]);
      }),
      { numRuns: 100 },
    );
  });

  const cases: readonly (readonly [name: string, change: (graph: Graph, module: Module) => void, finding: string])[] = [
    ['names', (_, module) => module.graphs.push(new Graph('main')), 'names: @main: two graphs have this name'],
    [
      'names of values',
      (graph) => {
        value(graph, 'h').name = 'other';
      },
      'names: other: @main does not know this value by its name',
    ],
    [
      'producers',
      (graph) => {
        value(graph, 'h').producer = undefined;
      },
      'producers: h: does not point to its producer h/MatMul',
    ],
    [
      'producers: nothing behind a value',
      (graph) => graph.addValue('dangling'),
      'producers: dangling: has no producer and no data',
    ],
    [
      'producers: an input twice',
      (graph) => graph.inputs.push(value(graph, 'x')),
      'producers: @main: an input is listed twice',
    ],
    ['uses', (graph) => value(graph, 'x').uses.clear(), 'uses: x: is read 1 times but lists 0 reads'],
    [
      'uses: a reader that was taken out by hand',
      (graph) => graph.nodes.splice(2, 1),
      'uses: past: is read by new/Relu, which is in no graph',
    ],
    ['order', (graph) => graph.nodes.reverse(), 'order: n/Neg: reads h, which is not defined before it'],
    [
      'order: outputs',
      (graph) => graph.outputs.push(graph.addValue('late', tensorType('f32', []))),
      'order: @main: its output late is not defined',
    ],
    [
      'order: a subgraph takes a name from around it',
      (graph) => graph.renameValue(value(graph, 'x'), 'n'),
      'order: n: a graph around @yes has a value of this name',
    ],
    ['inputs', (graph) => graph.nodes[0]!.setInput(1, undefined), 'inputs: h/MatMul: MatMul needs its input 1'],
    [
      'inputs: opsets',
      (_, module) => module.opsets.delete(''),
      'inputs: h/MatMul: no opset is given for the domain ""',
    ],
    [
      'types',
      (graph) => {
        value(graph, 'w').type = tensorType('f32', [8, 5]);
      },
      'types: w: has the type f32[8,5], but its data is f32[8,4]',
    ],
    [
      'types: negative dimensions',
      (graph) => {
        value(graph, 'h').type = tensorType('f32', [-1, 4]);
      },
      'types: h: has the dimension -1',
    ],
    [
      'ports',
      (graph) => graph.quantizedPorts.add(value(graph, 'x')),
      'ports: x: is a quantized port without an encoding',
    ],
    [
      'ports: not at the boundary',
      (graph) => graph.quantizedPorts.add(value(graph, 'w')),
      'ports: w: is a quantized port but neither input nor output',
    ],
    ['states', (_, module) => module.states.clear(), 'states: @main state k0: is not declared in the module'],
    ['states: ports', (graph) => graph.outputs.pop(), 'states: @main state k0: leaves as new, which is no output'],
    [
      'tie groups',
      (graph) => {
        value(graph, 'new').encoding = undefined;
      },
      'tie-groups: new: has another encoding than past, which it is tied to',
    ],
    [
      'tie groups: unknown names',
      (_, module) => module.tieGroups.push(['nothing']),
      'tie-groups: nothing: is in a tie group but in no graph',
    ],
  ];

  it.each(cases)('finds broken %s', (_, change, finding) => {
    expect(broken(change)).toContain(finding);
  });

  it.each([
    ['q(u8, scale 0.0)', 'scales must be positive numbers'],
    ['q(u8, scale 0.1, zero 256)', 'the zero point 256 is outside u8'],
    ['q(u8, scale 0.1, zero [0, 1])', '2 zero points for 1 scales'],
    ['q(i8, scale [0.1, 0.2])', '2 scales, but its shape needs 1'],
    ['q(i8, axis 1, scale [0.1, 0.2])', '2 scales, but its shape needs 4'],
    ['q(i8, axis 2, scale [0.1, 0.2])', 'axis 2 is outside the shape [2,4]'],
    ['q(i4, axis 1, block 3, scale [0.1, 0.2])', 'blocks of 3 do not divide axis 1 of [2,4]'],
    ['q(i4, axis 1, block 2, scale [0.1, 0.2])', '2 scales, but its shape needs 4'],
    [
      'q(i4, axis 1, block 2, channel 0, scale [0.1, 0.2], blockscale [1, 2, 3])',
      '3 block scales, but its shape needs 4',
    ],
    [
      'q(i4, axis 1, block 2, channel 0, scale [0.1, 0.2], blockscale [1, 2, 3, 16])',
      'the block scale 16 is outside 1..15',
    ],
    [
      'q(i4, axis 1, block 2, channel 1, scale 0.1, blockscale [1, 2, 3, 4])',
      'the channel axis is the axis that is cut into blocks',
    ],
    ['q(i4, axis 1, block 2, scale 0.1, blockscale [1, 2, 3, 4])', 'block scales need a channel axis'],
  ])('finds that %s does not fit f32[2,4]', (encoding, message) => {
    const module = parseModule(`npuir 1\ngraph @g\n  in %x : f32[2,4] ${encoding}\n  out %x\n`);
    expect(findProblems(module)).toContainEqual({ invariant: 'encodings', where: 'x', message });
  });

  it('finds an encoding on integers and a payload that does not fit', () => {
    const module = parseModule('npuir 1\ngraph @g\n  in %x : i64[2] q(u8, scale 1)\n  out %x\n');
    expect(findProblems(module)[0]!.message).toBe('an encoding writes real numbers, but the type is i64[2]');
    const problems = broken((graph) => {
      value(graph, 'w').payload = Tensor.of('i4', [8, 4], new Int8Array(32));
    });
    expect(problems).toEqual(['encodings: w: the payload is i4[8,4], not i8[8,4]']);
  });

  it('asks a frozen module for numbers and a quantized one for tied encodings', () => {
    const symbolic = (graph: Graph): void => {
      value(graph, 'h').type = tensorType('f32', ['batch', 4]);
    };
    expect(broken(symbolic)).toEqual([]);
    expect(broken(symbolic, 'frozen')).toEqual(['frozen: h: has the type f32[batch,4]']);
    const bare = (graph: Graph): void => {
      for (const name of ['past', 'new']) value(graph, name).encoding = undefined;
    };
    expect(broken(bare, 'frozen')).toEqual([]);
    expect(broken(bare, 'quantized')).toEqual([
      'quantized: past: is tied but has no encoding',
      'quantized: new: is tied but has no encoding',
    ]);
  });

  it('throws one coded error that lists every finding', () => {
    const module = parseModule(VALID);
    value(module.graph(), 'h').type = tensorType('f32', [-1, -2]);
    try {
      verify(module);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(NpucError);
      expect((error as NpucError).code).toBe('IR201');
      expect((error as NpucError).message).toMatch(/2 rules.*\n.*dimension -1\n.*dimension -2/);
    }
  });

  it('has a broken example for every rule', () => {
    const shown = new Set([
      ...cases.map(([, , finding]) => finding.split(':')[0]!),
      'encodings',
      'frozen',
      'quantized',
    ]);
    expect(INVARIANTS.map(({ name }) => name).filter((name) => !shown.has(name))).toEqual([]);
  });
});
