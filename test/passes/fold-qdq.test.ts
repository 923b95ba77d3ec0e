import { describe, expect, it } from 'vitest';
import { materializeQdq } from '../../compiler/export/materialize-qdq.ts';
import { encodeOnnx } from '../../compiler/export/onnx.ts';
import { decodeOnnx, openOnnx } from '../../compiler/import/onnx.ts';
import type { DType } from '../../compiler/ir/dtype.ts';
import { affineEncoding, type Encoding, encodingForm } from '../../compiler/ir/encoding.ts';
import { type Attribute, Graph, intAttribute, Module, tensorType, type Value } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { type PassReport, runPasses } from '../../compiler/pass.ts';
import { foldQdq } from '../../passes/fold-qdq.ts';
import { describeTensors } from '../compiler/describe-module.ts';
import { makeFeeds, type OnnxPort, runOnnx } from '../compiler/run-onnx.ts';
import { hasMaterial, materialPath } from '../material.ts';

/** Nodes as `output = op(inputs)`, then encoded values as `name: dtype form`, `#` where integers were chosen. */
function summarize(graph: Graph): string[] {
  const nodes = graph.nodes.map(
    (node) => `${node.output().name} = ${node.op}(${node.inputs.map((value) => value?.name).join(', ')})`,
  );
  const values = [...graph.values].filter((value) => value.encoding);
  const encodings = values.map(
    ({ name, encoding, payload }) => `${name}: ${encoding!.dtype} ${encodingForm(encoding!)}${payload ? ' #' : ''}`,
  );
  return [...nodes, ...encodings.sort()];
}

function fold(module: Module): PassReport {
  const report = runPasses(module, [foldQdq]);
  verify(module);
  return report;
}

const FLOAT = tensorType('f32', [2, 4]);

class Build {
  readonly module = new Module();
  readonly graph = new Graph('main');

  constructor() {
    this.module.graphs.push(this.graph);
  }

  parameters(dtype: DType, scale: number, zero: number): [Value, Value] {
    return [
      this.graph.addConstant('p_scale', Tensor.scalar('f32', scale)),
      this.graph.addConstant('p_zero', Tensor.scalar(dtype, zero)),
    ];
  }

  input(name: string, dtype: DType = 'f32'): Value {
    return this.graph.addInput(name, tensorType(dtype, [2, 4]));
  }

  q(
    x: Value,
    name: string,
    parameters: readonly Value[] = this.parameters('u8', 0.1, 128),
    type = 'u8' as DType,
  ): Value {
    return this.graph.emit('QuantizeLinear', [x, ...parameters], { name, type: tensorType(type, [2, 4]) });
  }

  dq(x: Value, name: string, parameters: readonly Value[] = this.parameters('u8', 0.1, 128)): Value {
    return this.graph.emit('DequantizeLinear', [x, ...parameters], { name, type: FLOAT });
  }

  op(op: string, inputs: readonly Value[], name: string, attributes: Record<string, Attribute> = {}): Value {
    return this.graph.emit(op, inputs, { name, type: FLOAT, attributes });
  }

  out(...values: Value[]): this {
    this.graph.outputs.push(...values);
    return this;
  }

  /** Folds, and shows that the model still computes the same bits. */
  async expectFolded(expected: readonly string[]): Promise<void> {
    const before = encodeOnnx(this.module);
    expect(fold(this.module).remarks).toEqual([]);
    expect(summarize(this.graph)).toEqual(expected);
    const after = encodeOnnx(this.module);
    const feed = (ports: readonly OnnxPort[]) => makeIntegerFeeds(ports);
    const [a, b] = [await runOnnx(before, feed), await runOnnx(after, feed)];
    expect(b.inputs).toEqual(a.inputs);
    expect(describeTensors(b.outputs)).toEqual(describeTensors(a.outputs));
  }

  /** What is refused stays as it is and says why. */
  expectRefused(...texts: RegExp[]): void {
    const before = summarize(this.graph);
    const { remarks, changed } = fold(this.module);
    expect(changed).toEqual([]);
    expect(summarize(this.graph)).toEqual(before);
    expect(remarks.length).toBe(texts.length);
    texts.forEach((text, index) => expect(remarks[index]!.text).toMatch(text));
  }
}

function makeIntegerFeeds(ports: readonly OnnxPort[]): ReturnType<typeof makeFeeds> {
  const feeds = makeFeeds(ports);
  for (const { name, dtype, shape } of ports) {
    if (dtype === 'u8') feeds[name] = { dtype, shape, data: Uint8Array.from({ length: 8 }, (_, i) => i * 31) };
  }
  return feeds;
}

describe.skipIf(!hasMaterial)("ONNX Runtime's own QDQ models", () => {
  it.each(['mnist_opset13.qdq_u8s8', 'version-RFB-320.qdq_u8s8_pc', 'version-RFB-320.qdq_u16s8_pc'])(
    '%s fold completely and come back with the same outputs',
    async (name) => {
      const path = materialPath('qdq', `${name}.onnx`);
      const module = openOnnx(path);
      const count = (op: string): number => module.graph().nodes.filter((node) => node.op === op).length;
      const before = { q: count('QuantizeLinear'), dq: count('DequantizeLinear') };
      expect(before.q).toBeGreaterThan(5);
      expect(fold(module).remarks).toEqual([]);
      expect(count('QuantizeLinear') + count('DequantizeLinear')).toBe(0);
      // Every DequantizeLinear of a constant has become a constant with its integers.
      const payloads = module.graph().constants.filter((value) => value.payload);
      expect(payloads.length).toBe(before.dq - before.q);
      const bytes = encodeOnnx(module);
      const [a, b] = [await runOnnx(path, makeFeeds), await runOnnx(bytes, makeFeeds)];
      expect(describeTensors(b.outputs)).toEqual(describeTensors(a.outputs));
      // What comes back folds again to the same.
      const again = decodeOnnx(bytes);
      expect(fold(again).remarks).toEqual([]);
      expect(summarize(again.graph())).toEqual(summarize(module.graph()));
    },
  );
});

describe('folding undoes materializing', () => {
  it('for every form of encoding, with names, integers and ports', () => {
    const scales = (count: number): Float32Array => Float32Array.from({ length: count }, (_, i) => (i + 1) / 100);
    const weights: readonly [string, Encoding][] = [
      ['a', { dtype: 'i8', scale: scales(1) }],
      ['b', { dtype: 'u8', scale: scales(1), zeroPoint: Int32Array.of(100) }],
      ['c', { dtype: 'i4', scale: scales(4), axis: 1 }],
      ['d', { dtype: 'u4', scale: scales(8), zeroPoint: new Int32Array(8).fill(8), axis: 0, block: 2 }],
      [
        'e',
        {
          dtype: 'i4',
          scale: scales(4),
          axis: 0,
          block: 2,
          channelAxis: 1,
          blockScale: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 15),
        },
      ],
      ['f', { dtype: 'i32', scale: scales(4), axis: 1 }],
      ['g', { dtype: 'i16', scale: scales(1) }],
    ];
    const { module, graph } = new Build();
    let x = graph.addInput('x', tensorType('f32', [4, 4]));
    x.encoding = affineEncoding('u16', -1, 1);
    graph.quantizedPorts.add(x);
    for (const [name, encoding] of weights) {
      const data = Tensor.of(
        'f32',
        [4, 4],
        Float32Array.from({ length: 16 }, (_, i) => (i - 8) / 50),
      );
      const w = graph.addConstant(name, data);
      w.encoding = encoding;
      x = graph.emit('MatMul', [x, w], { name: `after_${name}`, type: tensorType('f32', [4, 4]) });
      x.encoding = affineEncoding('u16', -2, 3);
    }
    const narrow = graph.emit('Identity', [x], { name: 'narrow', type: x.type! });
    narrow.encoding = affineEncoding('u8', -2, 3);
    graph.quantizedPorts.add(narrow);
    const other = graph.emit('Neg', [x], { name: 'other', type: x.type! });
    other.encoding = affineEncoding('u16', -3, 3);
    graph.outputs.push(narrow, other);

    const bytes = encodeOnnx(module);
    const back = decodeOnnx(bytes);
    expect(fold(back).remarks).toEqual([]);
    // The change of format comes back as an Identity; the payloads are new.
    const plain = (lines: string[]): string[] => lines.map((line) => line.replace(' #', '')).sort();
    expect(plain(summarize(back.graph()))).toEqual(plain(summarize(graph)));
    for (const [name, encoding] of weights) {
      const value = back.graph().find(name)!;
      expect(value.encoding, name).toEqual(encoding);
      expect(value.payload!.digest, name).toBe(materializeQdq(graph).find(`${name}_q`)!.data!.digest);
    }
    expect([...back.graph().quantizedPorts].map((value) => value.name)).toEqual(['x', 'narrow']);
    const twice = encodeOnnx(back);
    expect(Buffer.compare(encodeOnnx(decodeOnnx(twice)), twice)).toBe(0);
  });
});

describe('pairs', () => {
  it('fold into the value that is quantized', async () => {
    const build = new Build();
    const x = build.input('x');
    const a = build.op('Relu', [build.dq(build.q(x, 'x_q'), 'x_dq')], 'a');
    await build.out(build.dq(build.q(a, 'a_q'), 'y')).expectFolded(['y = Relu(x)', 'x: u8 tensor', 'y: u8 tensor']);
  });

  it('of several DequantizeLinear fold into one value', async () => {
    const build = new Build();
    const q = build.q(build.input('x'), 'x_q');
    await build
      .out(build.op('Add', [build.dq(q, 'one'), build.dq(q, 'two')], 'y'))
      .expectFolded(['y = Add(x, x)', 'x: u8 tensor']);
  });

  it('of a value that is read as float, too, fold into a copy', async () => {
    const build = new Build();
    const x = build.input('x');
    const a = build.op('Abs', [x], 'a');
    const low = build.dq(build.q(a, 'a_q'), 'a_dq');
    await build
      .out(build.op('Sub', [a, low], 'y'))
      .expectFolded(['a = Abs(x)', 'a_as_u8 = Identity(a)', 'y = Sub(a, a_as_u8)', 'a_as_u8: u8 tensor']);
  });

  it('of one value in two formats fold into two values', async () => {
    const build = new Build();
    const x = build.input('x');
    const wide = build.parameters('u16', 0.001, 32768);
    const a = build.dq(build.q(x, 'x_q8'), 'x_8');
    const b = build.dq(build.q(x, 'x_q16', wide, 'u16'), 'x_16', wide);
    await build
      .out(build.op('Sub', [a, b], 'y'))
      .expectFolded([
        'x_as_u8 = Identity(x)',
        'x_as_u16 = Identity(x)',
        'y = Sub(x_as_u8, x_as_u16)',
        ...['x_as_u16: u16 tensor', 'x_as_u8: u8 tensor'],
      ]);
  });

  it('one after the other fold into a change of format, or into one', async () => {
    const build = new Build();
    const wide = build.parameters('u16', 0.001, 32768);
    const first = build.dq(build.q(build.input('x'), 'q1', wide, 'u16'), 'd1', wide);
    const same = build.dq(build.q(first, 'q2', wide, 'u16'), 'd2', wide);
    const narrow = build.dq(build.q(same, 'q3'), 'd3');
    await build
      .out(build.op('Neg', [narrow], 'y'))
      .expectFolded(['x_as_u8 = Identity(x)', 'y = Neg(x_as_u8)', 'x: u16 tensor', 'x_as_u8: u8 tensor']);
  });

  it('of a float constant fold into a copy that keeps the rounding of QuantizeLinear', async () => {
    const build = new Build();
    const parameters = build.parameters('i8', 1 / 127, 0);
    const c = build.graph.addConstant('c', Tensor.of('f32', [2, 4], [-9, 1, 2, 3, 4, 5, 6, 7]));
    const low = build.dq(build.q(c, 'c_q', parameters, 'i8'), 'c_dq', parameters);
    await build
      .out(build.op('Add', [build.input('x'), low], 'y'))
      .expectFolded(['c_as_i8 = Identity(c)', 'y = Add(x, c_as_i8)', 'c_as_i8: i8 tensor']);
  });

  it('at integer ports make them quantized ports', async () => {
    const build = new Build();
    const x = build.input('x', 'u8');
    const a = build.op('Neg', [build.dq(x, 'x_dq')], 'a');
    const y = build.q(a, 'y');
    const z = build.op('Relu', [build.dq(y, 'y_dq')], 'z');
    await build.out(y, z).expectFolded(['y = Neg(x)', 'z = Relu(y)', 'x: u8 tensor', 'y: u8 tensor']);
    expect([...build.graph.quantizedPorts].map((value) => value.name)).toEqual(['x', 'y']);
  });

  it('between a port and another need a copy for the name', async () => {
    const build = new Build();
    const x = build.input('x', 'u8');
    const f = build.input('f');
    await build
      .out(build.dq(x, 'xf'), build.q(f, 'fq'))
      .expectFolded(['xf = Identity(x)', 'fq = Identity(f)', 'f: u8 tensor', 'fq: u8 tensor', 'x: u8 tensor']);
  });
});

describe('refusals', () => {
  it('scales and zero points that are computed', () => {
    const build = new Build();
    const scale = build.op('Abs', [build.input('s_in')], 'scale');
    const [, zero] = build.parameters('u8', 1, 0);
    build.out(build.dq(build.q(build.input('x'), 'q', [scale, zero]), 'y', [scale, zero]));
    build.expectRefused(/the scale scale is computed/);
  });

  it('sides that disagree', () => {
    const build = new Build();
    const q = build.q(build.input('x'), 'q');
    build.out(build.dq(q, 'y', build.parameters('u8', 0.2, 128)));
    build.expectRefused(/scale or zero point is not that of q/);
  });

  it('integers that something else reads', () => {
    const build = new Build();
    const q = build.q(build.input('x'), 'q');
    build.out(build.dq(q, 'y'), build.op('Cast', [q], 'z', { to: intAttribute(1) }));
    build.expectRefused(/Cast z\/Cast reads the integers q/);
  });

  it('integers that something else makes', () => {
    const build = new Build();
    const made = build.graph.emit('Cast', [build.input('x')], {
      type: tensorType('i32', [2, 4]),
      attributes: { to: intAttribute(6) },
    });
    build.out(build.dq(made, 'y', [build.parameters('i32', 0.5, 0)[0]]));
    build.expectRefused(/Cast .* computes its integers/);
  });

  it('an input that is read as integers, too', () => {
    const build = new Build();
    const x = build.input('x', 'u8');
    build.out(build.dq(x, 'y'), build.op('Cast', [x], 'z', { to: intAttribute(1) }));
    build.expectRefused(/Cast z\/Cast reads the integers x/);
  });

  it('formats that no encoding has', () => {
    const build = new Build();
    const parameters = [
      build.graph.addConstant('s', Tensor.scalar('f32', 1)),
      build.graph.addConstant('z', Tensor.of('f8e4m3fn', [], [0])),
    ];
    build.out(build.dq(build.q(build.input('x'), 'q', parameters, 'f8e4m3fn'), 'y', parameters));
    build.expectRefused(/f8e4m3fn is not a number format/);
  });

  it('values and scales that are not f32', () => {
    const build = new Build();
    const x = build.input('x', 'f16');
    const half = [build.graph.addConstant('s', Tensor.of('f16', [], [0x3c00])), build.parameters('u8', 1, 0)[1]];
    build.out(build.dq(build.q(x, 'q', half), 'y', half));
    build.expectRefused(/the scale is f16/);
    const other = new Build();
    other.out(other.dq(other.q(other.input('x', 'f16'), 'q'), 'y'));
    other.expectRefused(/x is f16/);
  });

  it('scales that are not positive', () => {
    const build = new Build();
    const parameters = build.parameters('u8', 0, 0);
    build.out(build.dq(build.q(build.input('x'), 'q', parameters), 'y', parameters));
    build.expectRefused(/not a positive number/);
  });

  it('integer ports of a subgraph, while its pairs fold', () => {
    const build = new Build();
    const inner = new Graph('body', build.graph);
    const count = inner.addInput('i', tensorType('i64', []));
    const condition = inner.addInput('cond', tensorType('bool', []));
    const state = inner.addInput('state', tensorType('u8', [2, 4]));
    const [s, z] = build.parameters('u8', 0.1, 128);
    const real = inner.emit('DequantizeLinear', [state, s, z], { name: 'real', type: FLOAT });
    const middle = inner.emit('Neg', [real], { name: 'middle', type: FLOAT });
    const q = inner.emit('QuantizeLinear', [middle, s, z], { name: 'mq', type: tensorType('u8', [2, 4]) });
    const d = inner.emit('DequantizeLinear', [q, s, z], { name: 'md', type: FLOAT });
    const sum = inner.emit('Add', [d, d], { name: 'sum', type: FLOAT });
    const next = inner.emit('QuantizeLinear', [sum, s, z], { name: 'next', type: tensorType('u8', [2, 4]) });
    inner.outputs.push(condition, next);
    expect(count.uses.size).toBe(0);
    const y = build.graph.emit(
      'Loop',
      [undefined, build.graph.addConstant('go', Tensor.of('bool', [], [1])), build.input('x', 'u8')],
      {
        name: 'y',
        type: tensorType('u8', [2, 4]),
        attributes: { body: { kind: 'graph', value: inner } },
      },
    );
    build.out(y);
    const { remarks } = fold(build.module);
    expect(summarize(inner)).toEqual([
      'real = DequantizeLinear(state, p_scale, p_zero)',
      'middle = Neg(real)',
      'sum = Add(middle, middle)',
      'next = QuantizeLinear(sum, p_scale, p_zero)',
      'middle: u8 tensor',
    ]);
    expect(remarks.map(({ where, text }) => `${where}: ${text}`)).toEqual([
      "real/DequantizeLinear: the subgraph's input state must stay an integer",
      "next/QuantizeLinear: the subgraph's output next must stay an integer",
    ]);
  });
});
