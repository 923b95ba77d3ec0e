import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { NpucError } from '../../compiler/errors.ts';
import { Graph, intsAttribute, Module, tensorType } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { randomModule } from './random-module.ts';

const EXAMPLE = `npuir 1
ir 9
opset 23
opset com.microsoft 1
producer "pytorch" "2.1"
doc "a \\"small\\" model"
metadata "key" "value"
state k0 append f32[2,1,256,64] axis 2 initial 0.0
tie %past_k0 %new_k0

function custom::Scale overload "v2"
  opset 21
  attribute alpha
  default raw "0a0b"
  graph @body
    in %x
    %y = Mul(%x, %x)
    out %y
end

graph @prefill {tokens 64, cache 256}
  doc "prefill"
  in %x : f32[1,batch * 2 + min(a, b),"weird ]"]
  in %past_k0 : f32[2,1,192,64] q(u8, scale 0.0121, zero 128) quantized
  in %"a b" : sequence(f32[2])
  in %flag : bool[]
  %w : f32[4,2] q(i8, axis 0, scale [0.1, 0.2, 0.3, 0.4]) = const [1.0, -0.0, inf, nan, 1e-8, 0.1, 3.4028235e+38, -2.5]
  %big : f32[8,8] = const rand(7, normal 0.02)
  %p : f32[2] q(i8, scale 0.5) = const [1.0, 2.0] payload [2, 5]
  %ids : i64[2] = const [9223372036854775807, -1]
  %h : f16[2] = const [0.5, 65504.0]
  %s : string[2] = const ["a", "b\\n"]
  %b : bool[] = const true
  %u : u4[3] = const [1, 2, 15]
  %l : f32[2,8] q(i4, axis 1, block 4, channel 0, scale [0.5, 0.25], blockscale [1, 2, 3, 15]) = const fill 1.0
  %a, _, %c : f32 = com.microsoft::Op(%x, _, %big) {int -3, big 9223372036854775807, float 1.0, string "q", ints [1, 2], none ints[], floats [0.1, -inf], strings ["x"], tensor tensor i64[2] [1, 2], type type map(i64, optional(?)), blob raw "0aff"} as "node/1"  ; from Pow_3 "a b/c"
  %y = If(%flag) {then_branch graph @yes
      %n = Neg(%a)
      out %n
    end, else_branch graph @no
      out %a
    end}
  = Print(%y)
  %new_k0 : f32[2,1,64,64] q(u8, scale 0.0121, zero 128) = Identity(%past_k0)
  out %y
  out %new_k0 quantized
  state k0 : %past_k0 -> %new_k0
`;

function failure(text: string): NpucError {
  try {
    parseModule(text, { file: 'case.ir' });
  } catch (error) {
    return error as NpucError;
  }
  throw new Error('the text was accepted');
}

describe('text form', () => {
  it('prints what it read, every construct of the grammar', () => {
    expect(printModule(parseModule(EXAMPLE))).toBe(EXAMPLE);
  });

  it('keeps names, uses and subgraph captures', () => {
    const module = parseModule(EXAMPLE);
    const graph = module.graph('prefill');
    const branch = graph.nodes[1]!.subgraphs[0]!;
    expect(branch.parent).toBe(graph);
    expect(branch.nodes[0]!.input(0)).toBe(graph.find('a'));
    expect(graph.find('a')!.consumers).toEqual([branch.nodes[0]]);
    expect(graph.nodes[0]!.name).toBe('node/1');
    expect(graph.nodes[0]!.from).toEqual(['Pow_3', 'a b/c']);
    expect(graph.states.get('k0')!.output).toBe(graph.outputs[1]);
  });

  it('makes the same random data everywhere', () => {
    const text =
      'npuir 1\ngraph @g\n  %a : f32[4] = const rand(7, normal 0.02)\n  %b : i64[3] = const rand(1, int 0 9)\n  out %a\n';
    const graph = parseModule(text).graph();
    // Computed by a separate Python program from the generator's description.
    expect([...graph.find('a')!.data!.toFloats()]).toEqual([
      -0.01840728521347046, -0.01180772390216589, 0.022196616977453232, -0.021765755489468575,
    ]);
    expect(graph.find('b')!.data!.toNumbers()).toEqual([5, 0, 4]);
  });

  it('shares equal constants of two graphs as one tensor', () => {
    const line = '  %w : f32[2] = const [1.0, 2.0]\n  out %w\n';
    const module = parseModule(`npuir 1\ngraph @a\n${line}graph @b\n${line}`);
    expect(module.weights.size).toBe(1);
  });

  it('prints large data as a digest and reads it back through resolve', () => {
    const module = new Module();
    const graph = new Graph('g');
    module.graphs.push(graph);
    const data = Tensor.of('f32', [20], new Float32Array(20).fill(0.5));
    graph.outputs.push(graph.addConstant('w', data));
    const short = printModule(module);
    expect(short).toContain(`const #${data.digest.slice(0, 8)}`);
    expect(() => parseModule(short)).toThrow(/not in the text/);
    const back = parseModule(short, { resolve: (digest) => (data.digest.startsWith(digest) ? data : undefined) });
    expect(back.graph().find('w')!.data).toBe(data);
    expect(
      parseModule(printModule(module, { data: 'all' }))
        .graph()
        .find('w')!.data!.digest,
    ).toBe(data.digest);
  });

  it('prints an empty list of integers apart from a list of one kind', () => {
    const module = new Module();
    const graph = new Graph('g');
    module.graphs.push(graph);
    const x = graph.addInput('x', tensorType('f32', []));
    graph.outputs.push(graph.emit('Squeeze', [x], { attributes: { axes: intsAttribute([]) } }));
    expect(parseModule(printModule(module)).graph().nodes[0]!.attributes.get('axes')).toEqual(intsAttribute([]));
  });

  it.each([
    ['', 'IR101', 'case.ir:1:1', 'expected "npuir"'],
    ['npuir 2\n', 'IR101', 'case.ir:1:7', 'only version 1'],
    ['npuir 1\ngraph @g\n  out %x\n', 'IR102', 'case.ir:3:7', '%x is not defined'],
    ['npuir 1\ngraph @g\n  %x = Neg(%x)\n', 'IR102', 'case.ir:3:12', '%x is not defined'],
    ['npuir 1\ngraph @g\n  in %x\n  in %x\n', 'IR102', 'case.ir:4:6', 'defined twice'],
    ['npuir 1\ngraph @g\n  in %x : f33[2]\n', 'IR101', 'case.ir:3:11', 'f33 is not an element type'],
    ['npuir 1\ngraph @g\n  %w : f32[n] = const 1.0\n', 'IR101', 'case.ir:3:17', 'fixed shape'],
    ['npuir 1\ngraph @g\n  %w : f32[3] = const [1.0, 2.0]\n', 'IR101', 'case.ir:3:23', 'has 3 elements, but 2'],
    ['npuir 1\ngraph @g\n  %w : u8[1] = const [256]\n', 'IR101', 'case.ir:3:22', '256 does not fit u8'],
    ['npuir 1\ngraph @g\n  %w : i64[1] = const [0.5]\n', 'IR101', 'case.ir:3:23', '0.5 is not an integer'],
    ['npuir 1\ngraph @g\n  %w : f32[9] = const #0123abcd\n', 'IR103', 'case.ir:3:23', '#0123abcd is not in the text'],
    ['npuir 1\ngraph @g\n  in %x q(f32, scale 1)\n', 'IR101', 'case.ir:3:11', 'f32 is not an integer type'],
    ['npuir 1\ngraph @g\n  in %x q(u8, zero 1)\n', 'IR101', 'case.ir:3:10', 'needs a type and a scale'],
    ['npuir 1\ngraph @g\n  in %x\n  %y = Op(%x) {a [1, "s"]}\n', 'IR101', 'case.ir:4:18', 'items of one kind'],
    ['npuir 1\ngraph @g\n  in %x\n  %y = Op(%x) {a "no end}\n', 'IR101', 'case.ir:4:18', 'no end on its line'],
    ['npuir 1\ngraph @g\n  in %x : f32[1\n', 'IR101', 'case.ir:3:16', 'a dimension has no end'],
    ['npuir 1\ngraph @g\n  in %x ~\n', 'IR101', 'case.ir:3:9', 'unexpected character "~"'],
    ['npuir 1\ngraph @g\n  in %x extra\n', 'IR101', 'case.ir:3:9', 'unexpected extra'],
    ['npuir 1\nfunction d::F\n  graph @b\n', 'IR101', 'case.ir:4:1', 'expected "end", found the end of the text'],
    ['npuir 1\nstate k grow f32[1] axis 0\n', 'IR101', 'case.ir:2:9', 'a state is one of'],
  ])('refuses %j', (text, code, where, message) => {
    const error = failure(text);
    expect({ code: error.code, where: error.where }).toEqual({ code, where });
    expect(error.message).toContain(message);
  });

  it('reads back whatever it prints', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const text = printModule(randomModule(seed), { data: 'all' });
        expect(printModule(parseModule(text), { data: 'all' })).toBe(text);
      }),
      { numRuns: 200 },
    );
  });
});
