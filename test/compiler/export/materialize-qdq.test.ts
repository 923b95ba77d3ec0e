import { describe, expect, it } from 'vitest';
import { hasEncodings, materializeQdq } from '../../../compiler/export/materialize-qdq.ts';
import { encodeOnnx } from '../../../compiler/export/onnx.ts';
import { dequantizeConstant, quantizeConstant } from '../../../compiler/export/quantize-constant.ts';
import { decodeOnnx } from '../../../compiler/import/onnx.ts';
import { affineEncoding, type Encoding } from '../../../compiler/ir/encoding.ts';
import { Graph, Module, tensorType, type Value } from '../../../compiler/ir/graph.ts';
import { Tensor, type TensorData, transposeTensor } from '../../../compiler/ir/tensor.ts';
import { printModule } from '../../../compiler/ir/text.ts';
import { verify } from '../../../compiler/ir/verify.ts';
import { runOnnx } from '../run-onnx.ts';

const K = 8;
const N = 6;
const wave = (count: number, phase: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * 1.7 + phase));
const U16 = affineEncoding('u16', -2, 2);
const OUT = affineEncoding('u16', -9, 9);
const scalesOf = (count: number, size: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => (1 + (i % 3) / 4) / size);

const FORMS: Readonly<Record<string, Encoding>> = {
  'i8 per tensor': { dtype: 'i8', scale: Float32Array.of(1 / 127) },
  'u8 per tensor, affine': affineEncoding('u8', -1, 1.1),
  'i8 per channel': { dtype: 'i8', scale: scalesOf(N, 127), axis: 1 },
  'i4 per channel': { dtype: 'i4', scale: scalesOf(N, 7), axis: 1 },
  'i16 per tensor': { dtype: 'i16', scale: Float32Array.of(1 / 32767) },
  'i4 per block': { dtype: 'i4', scale: scalesOf(2 * N, 7), axis: 0, block: 4 },
  'u4 per block, affine': {
    dtype: 'u4',
    scale: scalesOf(2 * N, 8),
    zeroPoint: new Int32Array(2 * N).fill(8),
    axis: 0,
    block: 4,
  },
  'i4 lpbq': {
    dtype: 'i4',
    scale: scalesOf(N, 70),
    axis: 0,
    block: 4,
    channelAxis: 1,
    blockScale: Uint8Array.from({ length: 2 * N }, (_, i) => 8 + (i % 8)),
  },
};

interface Made {
  readonly module: Module;
  readonly graph: Graph;
  readonly x: Value;
  readonly w: Value;
  readonly y: Value;
}

/** y = x W with x [2, K] and W [K, N]; x and y are u16, W as asked. */
function makeMatMul(weight: Encoding, data = Tensor.of('f32', [K, N], wave(K * N, 1))): Made {
  const graph = new Graph('main');
  const module = new Module();
  module.graphs.push(graph);
  const x = graph.addInput('x', tensorType('f32', [2, K]));
  const w = graph.addConstant('w', data);
  const y = graph.emit('MatMul', [x, w], { name: 'y', type: tensorType('f32', [2, N]), from: ['user/MatMul_3'] });
  graph.outputs.push(y);
  x.encoding = U16;
  w.encoding = weight;
  y.encoding = OUT;
  return { module, graph, x, w, y };
}

const round = (data: Tensor, encoding: Encoding): Float32Array =>
  dequantizeConstant(
    new Tensor(encoding.dtype, data.shape, { kind: 'memory', bytes: quantizeConstant(data, encoding, '') }),
    encoding,
  );

/** What the graph means: every encoded value rounded, the product in double precision. */
function expectedProduct(weight: Float32Array, input: Float32Array): Float32Array {
  const x = round(Tensor.of('f32', [2, K], input), U16);
  const y = Float32Array.from({ length: 2 * N }, (_, at) => {
    let sum = 0;
    for (let k = 0; k < K; k++) sum += x[Math.floor(at / N) * K + k]! * weight[k * N + (at % N)]!;
    return sum;
  });
  return round(Tensor.of('f32', [2, N], y), OUT);
}

const INPUT = wave(2 * K, 0);
const feedFloat = (): Record<string, TensorData> => ({ x: { dtype: 'f32', shape: [2, K], data: INPUT } });

function expectClose(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  actual.forEach((value, i) => expect(Math.abs(value - expected[i]!), `element ${i}`).toBeLessThanOrEqual(tolerance));
}

/** Nodes as `op(inputs) -> output {attributes}`. */
function lines(graph: Graph): string[] {
  return graph.nodes.map((node) => {
    const attributes = [...node.attributes].map(([name, attribute]) => ` ${name}=${String(attribute.value)}`).join('');
    const op = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
    return `${node.output().name} = ${op}(${node.inputs.map((value) => value?.name).join(', ')})${attributes}`;
  });
}

const constantsOf = (graph: Graph): Record<string, string> =>
  Object.fromEntries(graph.constants.map(({ name, data }) => [name, `${data!.dtype}[${data!.shape}]`]));

describe('weights', () => {
  it.each(Object.entries(FORMS))('%s mean in ONNX Runtime what the encoding says', async (_, encoding) => {
    for (const data of [
      Tensor.of('f32', [K, N], wave(K * N, 1)),
      transposeTensor(Tensor.of('f32', [N, K], wave(K * N, 2))),
    ]) {
      const { module } = makeMatMul(encoding, data);
      const { outputs } = await runOnnx(encodeOnnx(module), feedFloat);
      const expected = expectedProduct(round(data, encoding), INPUT);
      // The product may differ in its last bits, and then round to the next step.
      expectClose(outputs.y!.data as Float32Array, expected, OUT.scale[0]! * 1.001);
    }
  });

  it('of two levels take the form that HTP runs natively', () => {
    const graph = materializeQdq(makeMatMul(FORMS['i4 lpbq']!).graph);
    expect(lines(graph)).toEqual([
      'x_q = QuantizeLinear(x, x_scale, x_zp)',
      'x_dq = DequantizeLinear(x_q, x_scale, x_zp)',
      'w_bscale = DequantizeLinear(w_bs, w_scale, w_bs_zp) axis=1',
      'w_dq = DequantizeLinear(w_q, w_bscale, w_zp) axis=0 block_size=4',
      'y_float = MatMul(x_dq, w_dq)',
      'y_q = QuantizeLinear(y_float, y_scale, y_zp)',
      'y = DequantizeLinear(y_q, y_scale, y_zp)',
    ]);
    expect(constantsOf(graph)).toEqual({
      ...{ x_scale: 'f32[]', x_zp: 'u16[]', w_scale: 'f32[6]', w_bs: 'u8[2,6]', w_bs_zp: 'u8[6]', w_zp: 'i4[2,6]' },
      ...{ w_q: 'i4[8,6]', y_scale: 'f32[]', y_zp: 'u16[]' },
    });
    expect(graph.outputs.map((value) => value.name)).toEqual(['y']);
    expect(graph.nodes.map((node) => node.from)).toEqual([
      [],
      [],
      [],
      [],
      ['user/MatMul_3'],
      ['user/MatMul_3'],
      ['user/MatMul_3'],
    ]);
  });

  it('take chosen integers as they are', async () => {
    const made = makeMatMul(FORMS['i8 per channel']!);
    const chosen = Int8Array.from({ length: K * N }, (_, i) => (i === 0 ? -128 : (i % 15) - 7));
    made.w.payload = Tensor.of('i8', [K, N], chosen);
    const graph = materializeQdq(made.graph);
    expect(graph.find('w_q')!.data).toBe(made.w.payload);
    const { outputs } = await runOnnx(encodeOnnx(made.module), feedFloat);
    const weight = dequantizeConstant(made.w.payload, made.w.encoding!);
    expectClose(outputs.y!.data as Float32Array, expectedProduct(weight, INPUT), OUT.scale[0]! * 1.001);
  });

  it('are rounded only when they are read', () => {
    let reads = 0;
    const data = new Tensor('f32', [K, N], {
      kind: 'derived',
      compute: () => {
        reads++;
        return new Uint8Array(wave(K * N, 1).buffer);
      },
    });
    const graph = materializeQdq(makeMatMul(FORMS['i8 per channel']!, data).graph);
    expect(reads).toBe(0);
    graph.find('w_q')!.data!.read();
    expect(reads).toBe(1);
  });

  it('that two graphs share have the same names and bytes in both', () => {
    const data = Tensor.of('f32', [K, N], wave(K * N, 1));
    const prefill = makeMatMul(FORMS['i4 lpbq']!, data).graph;
    const decode = makeMatMul(FORMS['i4 lpbq']!, data).graph;
    // Another graph of the module may have more in it, before and after.
    const extra = decode.emit('Relu', [decode.find('y')!], { name: 'w_extra' });
    extra.encoding = affineEncoding('u16', 0, 9);
    decode.outputs.push(extra);
    const [a, b] = [materializeQdq(prefill), materializeQdq(decode)];
    for (const name of ['w_q', 'w_scale', 'w_bs', 'w_bs_zp', 'w_zp']) {
      expect(b.find(name)!.data!.digest, name).toBe(a.find(name)!.data!.digest);
    }
    expect(a.find('w_q')!.data).toBe(b.find('w_q')!.data);
  });
});

describe('graphs', () => {
  it('stay as they were', () => {
    const { module, graph } = makeMatMul(FORMS['i4 per block']!);
    const before = printModule(module);
    const fresh = materializeQdq(graph);
    expect(printModule(module)).toBe(before);
    expect(hasEncodings(graph)).toBe(true);
    expect(hasEncodings(fresh)).toBe(false);
    const written = new Module();
    written.graphs.push(fresh);
    verify(written);
    verify(decodeOnnx(encodeOnnx(module)));
  });

  it('with integer ports take and give integers', async () => {
    const made = makeMatMul(FORMS['i8 per channel']!);
    made.graph.quantizedPorts.add(made.x).add(made.y);
    const graph = materializeQdq(made.graph);
    expect(lines(graph)).toEqual([
      'x_dq = DequantizeLinear(x, x_scale, x_zp)',
      'w_dq = DequantizeLinear(w_q, w_scale, w_zp) axis=1',
      'y_float = MatMul(x_dq, w_dq)',
      'y = QuantizeLinear(y_float, y_scale, y_zp)',
    ]);
    expect([graph.inputs[0]!.type, graph.outputs[0]!.type]).toEqual([
      tensorType('u16', [2, K]),
      tensorType('u16', [2, N]),
    ]);
    const integers = new Uint16Array(quantizeConstant(Tensor.of('f32', [2, K], INPUT), U16, '').buffer);
    const { outputs } = await runOnnx(encodeOnnx(made.module), () => ({
      x: { dtype: 'u16', shape: [2, K], data: integers },
    }));
    const reals = dequantizeConstant(Tensor.of('u16', [2, N], outputs.y!.data), OUT);
    const weight = round(made.w.data!, made.w.encoding!);
    expectClose(reals, expectedProduct(weight, INPUT), OUT.scale[0]! * 1.001);
  });

  it('read an integer output through a DequantizeLinear of it', () => {
    const made = makeMatMul(FORMS['i8 per channel']!);
    made.graph.quantizedPorts.add(made.y);
    made.graph.outputs.push(made.graph.emit('Relu', [made.y], { name: 'z' }));
    expect(lines(materializeQdq(made.graph)).slice(-4)).toEqual([
      'y_float = MatMul(x_dq, w_dq)',
      'y = QuantizeLinear(y_float, y_scale, y_zp)',
      'y_dq = DequantizeLinear(y, y_scale, y_zp)',
      'z = Relu(y_dq)',
    ]);
  });

  it('have one DequantizeLinear for all readers, and one scale for all values of an encoding', () => {
    const { graph, x } = makeMatMul(FORMS['i8 per tensor']!);
    const a = graph.emit('Relu', [x], { name: 'a' });
    const b = graph.emit('Add', [x, a], { name: 'b' });
    a.encoding = U16;
    b.encoding = { ...U16 };
    graph.outputs.push(b);
    const unread = graph.emit('Neg', [b], { name: 'unread' });
    unread.encoding = U16;
    const fresh = materializeQdq(graph);
    expect(lines(fresh).slice(2)).toEqual([
      'w_dq = DequantizeLinear(w_q, w_scale, w_zp)',
      'y_float = MatMul(x_dq, w_dq)',
      'y_q = QuantizeLinear(y_float, y_scale, y_zp)',
      'y = DequantizeLinear(y_q, y_scale, y_zp)',
      'a = Relu(x_dq)',
      'a_q = QuantizeLinear(a, x_scale, x_zp)',
      'a_dq = DequantizeLinear(a_q, x_scale, x_zp)',
      'b_float = Add(x_dq, a_dq)',
      'b_q = QuantizeLinear(b_float, b_scale, b_zp)',
      'b = DequantizeLinear(b_q, b_scale, b_zp)',
      'unread = Neg(b)',
    ]);
  });

  it('change a format without a node of its own', async () => {
    const { module, graph, y } = makeMatMul(FORMS['i8 per channel']!);
    graph.outputs.length = 0;
    const narrow = graph.emit('Identity', [y], { name: 'narrow', type: y.type! });
    narrow.encoding = affineEncoding('u8', -9, 9);
    const z = graph.emit('Neg', [narrow], { name: 'z', type: y.type! });
    graph.outputs.push(z);
    expect(lines(materializeQdq(graph)).slice(-5)).toEqual([
      'y_q = QuantizeLinear(y, y_scale, y_zp)',
      'y_dq = DequantizeLinear(y_q, y_scale, y_zp)',
      'narrow_q = QuantizeLinear(y_dq, narrow_scale, narrow_zp)',
      'narrow_dq = DequantizeLinear(narrow_q, narrow_scale, narrow_zp)',
      'z = Neg(narrow_dq)',
    ]);
    const { outputs } = await runOnnx(encodeOnnx(module), feedFloat);
    expect(
      new Set((outputs.z!.data as Float32Array).map((value) => Math.abs(value / narrow.encoding!.scale[0]!) % 1)).size,
    ).toBeLessThan(13);
  });

  it('never take the name of a value of the model', () => {
    const { module, graph, y } = makeMatMul(FORMS['i8 per channel']!);
    graph.outputs.push(graph.emit('Neg', [y], { name: 'y_q' }), graph.emit('Neg', [y], { name: 'w_scale' }));
    const fresh = materializeQdq(graph);
    expect(fresh.outputs.map((value) => value.name)).toEqual(['y', 'y_q', 'w_scale']);
    expect(fresh.outputs.map((value) => value.producer!.op)).toEqual(['DequantizeLinear', 'Neg', 'Neg']);
    verify(decodeOnnx(encodeOnnx(module)));
  });

  it('never give a node the name of another, though it be named as its value', async () => {
    const { module, graph, y } = makeMatMul(FORMS['i8 per tensor']!);
    y.producer!.name = y.name;
    const written = materializeQdq(graph);
    const names = written.nodes.map((node) => node.name);
    expect(new Set(names).size, String(names)).toBe(names.length);
    await runOnnx(encodeOnnx(module), () => ({ x: { dtype: 'f32', shape: [2, K], data: wave(2 * K, 0) } }));
  });

  it('with branches share constants and encodings with them', async () => {
    const { module, graph, x, w, y } = makeMatMul(FORMS['i8 per channel']!);
    graph.outputs.length = 0;
    const flag = graph.addConstant('flag', Tensor.of('bool', [], [1]));
    const branch = (name: string, op: string): Graph => {
      const inner = new Graph(name, graph);
      const product = inner.emit('MatMul', [x, w], { name: `${name}_p`, type: y.type! });
      product.encoding = OUT;
      inner.outputs.push(inner.emit(op, [product], { name: `${name}_out`, type: y.type! }));
      return inner;
    };
    const out = graph.emit('If', [flag], {
      name: 'out',
      type: y.type!,
      attributes: {
        then_branch: { kind: 'graph', value: branch('then', 'Neg') },
        else_branch: { kind: 'graph', value: branch('else', 'Relu') },
      },
    });
    graph.outputs.push(out);
    const fresh = materializeQdq(graph);
    const [then] = fresh.nodes.at(-1)!.subgraphs;
    expect(lines(then!)).toEqual([
      'then_p = MatMul(x_dq, w_dq)',
      'then_p_q = QuantizeLinear(then_p, then_p_scale, then_p_zp)',
      'then_p_dq = DequantizeLinear(then_p_q, then_p_scale, then_p_zp)',
      'then_out = Neg(then_p_dq)',
    ]);
    expect(fresh.nodes.filter((node) => node.output().name === 'w_dq').length).toBe(1);
    const { outputs } = await runOnnx(encodeOnnx(module), feedFloat);
    const expected = expectedProduct(round(w.data!, w.encoding!), INPUT).map((value) => -value);
    expectClose(outputs.out!.data as Float32Array, expected, OUT.scale[0]! * 1.001);
  });
});

describe('opsets', () => {
  it('before 21 use the domain of ONNX Runtime for what they lack', async () => {
    const { module, graph } = makeMatMul(FORMS['i4 per channel']!);
    module.opsets.set('', 13);
    const ops = new Set(materializeQdq(graph, 13).nodes.map((node) => `${node.domain}.${node.op}`));
    expect(ops).toEqual(new Set(['com.microsoft.QuantizeLinear', 'com.microsoft.DequantizeLinear', '.MatMul']));
    expect([...decodeOnnx(encodeOnnx(module)).opsets]).toEqual([
      ['', 13],
      ['com.microsoft', 1],
    ]);
    const { outputs } = await runOnnx(encodeOnnx(module), feedFloat);
    expect(outputs.y!.data.length).toBe(2 * N);
    const bytes = makeMatMul(FORMS['i8 per channel']!).graph;
    for (const value of bytes.values)
      if (value.encoding === U16 || value.encoding === OUT) value.encoding = affineEncoding('u8', -9, 9);
    expect(materializeQdq(bytes, 13).nodes.map((node) => node.domain)).toEqual(['', '', '', '', '', '']);
    expect(materializeQdq(bytes, 12).nodes.find((node) => node.output().name === 'w_dq')!.domain).toBe('com.microsoft');
  });

  it.each<[string, (made: Made) => void, number]>([
    ['blocks before opset 21', () => {}, 20],
    [
      'a computed i32',
      ({ y }) => {
        y.encoding = { dtype: 'i32', scale: Float32Array.of(1) };
      },
      21,
    ],
    [
      'computed values of two levels',
      ({ y }) => {
        y.encoding = FORMS['i4 lpbq'];
      },
      21,
    ],
    [
      'values that are not f32',
      ({ x }) => {
        x.type = tensorType('f16', [2, K]);
      },
      21,
    ],
  ])('refuse %s', (_, change, opset) => {
    const made = makeMatMul(FORMS['i4 per block']!);
    change(made);
    expect(() => materializeQdq(made.graph, opset)).toThrow(expect.objectContaining({ code: 'TG101' }));
  });
});
