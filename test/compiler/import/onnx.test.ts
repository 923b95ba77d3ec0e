import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { encodeOnnx, writeOnnx } from '../../../compiler/export/onnx.ts';
import { readNpz } from '../../../compiler/import/npz.ts';
import { decodeOnnx, openOnnx, openTensorFile } from '../../../compiler/import/onnx.ts';
import type { Graph, Node } from '../../../compiler/ir/graph.ts';
import { verify } from '../../../compiler/ir/verify.ts';
import type { Tensors } from '../../../compiler/runtime/runner.ts';
import { randomModule } from '../../ir/random-module.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { describeModule, describeTensors, describeType } from '../describe-module.ts';
import { makeFeeds, type OnnxPort, runOnnx } from '../run-onnx.ts';

const fixture = (name: string): string => fileURLToPath(new URL(`../../../fixtures/onnx/${name}`, import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'npuc-onnx-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Inputs of a model's reference run: an npz with in_ and out_ entries, or a folder of the ONNX backend suite's kind. */
type Reference = { readonly npz: string } | { readonly folder: string };

const MODELS: readonly { file: string; reference?: Reference }[] = [
  { file: 'mnist_8/model.onnx', reference: { folder: 'mnist_8/test_data_set_0' } },
  { file: 'super_resolution_10/model.onnx', reference: { folder: 'super_resolution_10/test_data_set_0' } },
  { file: 'basic-pitch/nmp.onnx', reference: { npz: 'basic-pitch/nmp.a440.npz' } },
  { file: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx', reference: { npz: 'ppocr-v4/det.two-lines.npz' } },
  { file: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx', reference: { npz: 'ppocr-v4/cls.ocr-line.npz' } },
  { file: 'silero-vad/silero_vad_16k_op15.onnx', reference: { npz: 'silero-vad/silero_vad_16k_op15.jfk-frame60.npz' } },
  { file: 'silero-vad/silero_vad_16k_sequence.onnx' },
  { file: 'ultraface/version-RFB-320.onnx' },
  { file: 'yunet/yunet_n_320_320.onnx' },
];

describe.skipIf(!hasMaterial)('real models', () => {
  it.each(MODELS)('$file survives reading and writing', async ({ file, reference }) => {
    const path = materialPath('onnx', file);
    const module = openOnnx(path);
    verify(module);
    const copy = join(folder, `${file.replaceAll('/', '-')}`);
    writeOnnx(module, copy);
    expect(describeModule(openOnnx(copy))).toEqual(describeModule(module));

    const feed = (inputs: readonly OnnxPort[]): Tensors =>
      reference ? readFeeds(reference, inputs) : makeFeeds(inputs, 512);
    const before = await runOnnx(path, feed);
    const after = await runOnnx(copy, feed);
    expect(after.inputs).toEqual(
      before.inputs.filter((port) => module.graph().inputs.some(({ name }) => name === port.name)),
    );
    expect(Object.keys(before.outputs).length).toBeGreaterThan(0);
    expect(describeTensors(after.outputs)).toEqual(describeTensors(before.outputs));
  });

  it.each(['mnist_opset13.qdq_u8s8.onnx', 'version-RFB-320.qdq_u16s8_pc.onnx'])('qdq/%s survives', (file) => {
    const module = openOnnx(materialPath('qdq', file));
    expect(describeModule(decodeOnnx(encodeOnnx(module)))).toEqual(describeModule(module));
  });

  it('leaves weights in the file and names nodes by their origin', () => {
    const module = openOnnx(materialPath('onnx', 'ultraface/version-RFB-320.onnx'));
    const graph = module.graph();
    const large = graph.constants.filter((value) => value.data!.byteLength > 1024);
    expect(large.length).toBeGreaterThan(20);
    expect(new Set(large.map((value) => value.data!.storage.kind))).toEqual(new Set(['file']));
    for (const node of graph.nodes) expect(node.from).toEqual([node.name || node.output().name]);
    // IR version 4 lists initializers as inputs here; only the image is one.
    expect(graph.inputs.map((value) => value.name)).toEqual(['input']);
  });
});

function readFeeds(reference: Reference, ports: readonly OnnxPort[]): Tensors {
  const names = ports.map((port) => port.name);
  if ('npz' in reference) {
    const arrays = readNpz(materialPath('onnx', reference.npz));
    return Object.fromEntries(names.map((name) => [name, arrays[`in_${name}`]!]));
  }
  // Initializers are listed as inputs in these two files, after the real one.
  return { [names[0]!]: openTensorFile(materialPath('onnx', reference.folder, 'input_0.pb')).toData() };
}

describe('typed data', () => {
  it('means the same as raw bytes, for every element type', () => {
    const { constants } = openOnnx(fixture('typed-data.onnx')).graph();
    const typed = constants.filter((value) => value.name.endsWith('_typed'));
    expect(typed.length).toBe(25);
    for (const value of typed) {
      const raw = constants.find((other) => other.name === value.name.replace('_typed', '_raw'))!;
      expect(value.data!.dtype).toBe(raw.data!.dtype);
      expect(Buffer.from(value.data!.read()).toString('hex'), value.name).toBe(
        Buffer.from(raw.data!.read()).toString('hex'),
      );
    }
    expect(constants.find((value) => value.name === 'strings')!.data!.toData().strings).toEqual(['one', 'zwölf']);
  });
});

describe('external data', () => {
  it('is read in ranges from the folder of the model', async () => {
    const graph = openOnnx(fixture('external.onnx')).graph();
    const [a, b] = graph.constants.map((value) => value.data!);
    expect(a!.storage.kind).toBe('file');
    expect(a!.toNumbers().slice(0, 3)).toEqual([0, 1, 2]);
    expect(b!.toNumbers().at(-1)).toBe(299);
  });

  it('is refused for a model in memory', () => {
    expect(() => decodeOnnx(readFileSync(fixture('external.onnx')))).toThrow(
      expect.objectContaining({ code: 'IM308' }),
    );
  });
});

describe('everything that the format can say', () => {
  const module = openOnnx(fixture('features.onnx'));
  const graph = module.graph();
  const node = (name: string, inside: Graph = graph): Node =>
    inside.nodes.find((entry) => entry.name === name || entry.op === name)!;

  it('is a valid module that survives writing', () => {
    verify(module);
    const again = decodeOnnx(encodeOnnx(module));
    expect(describeModule(again)).toEqual(describeModule(module));
    expect(Buffer.compare(encodeOnnx(again), encodeOnnx(module))).toBe(0);
  });

  it('keeps versions, metadata and unknown fields', () => {
    expect([...module.opsets]).toEqual([
      ['', 20],
      ['local', 1],
      ['vendor.ops', 3],
    ]);
    expect(module.metadata.get('author')).toBe('nobody');
    expect(graph.metadata.get('level')).toBe('graph');
    expect(node('late').extras?.metadata?.get('namespace')).toBe('model.late');
    expect(node('late').extras?.doc).toBe('out of order');
    expect(graph.inputs[0]!.extras).toMatchObject({ doc: 'the input' });
    expect(Buffer.from(module.unknown!).includes('org.example')).toBe(true);
    expect(Buffer.from(graph.unknown!).includes('SCALE_TENSOR')).toBe(true);
  });

  it('sorts nodes and resolves names across subgraphs', () => {
    const order = graph.nodes.map((entry) => entry.op);
    expect(order.indexOf('Twice')).toBeLessThan(order.indexOf('Add'));
    const branch = node('branch');
    const then = branch.attributes.get('then_branch')!.value as Graph;
    expect(then.parent).toBe(graph);
    expect(node('Add', then).inputs[0]).toBe(graph.find('late'));
    // The outer graph has a value of that name, too.
    expect(then.outputs[0]!.producer).toBe(node('Add', then));
    expect(graph.find('inner')!.producer).toBe(node('shadow'));
  });

  it('gives unknown dimensions names that the model does not use', () => {
    expect(describeType(graph.find('x')!.type)).toBe('f32["batch","unk__1",4]');
    expect(describeType(graph.find('late')!.type)).toBe('f32["batch","unk__0",4]');
    expect(describeType(graph.find('inner')!.type)).toBe('f32?');
    expect(describeType(graph.find('seq')!.type)).toBe('sequence(f32["n",4])');
    expect(describeType(graph.find('opt')!.type)).toBe('optional(sequence(i64?))');
    expect(describeType(graph.find('map')!.type)).toBe('map(i64, f32[])');
    expect(graph.find('sparse_in')!.type).toBeUndefined();
  });

  it('types attributes and carries what it has no kind for', () => {
    const { attributes } = node('Strange');
    const kinds = Object.fromEntries([...attributes].map(([name, { kind }]) => [name, kind]));
    expect(kinds).toEqual({
      ...{ blob: 'raw', empty: 'ints', f: 'float', fs: 'floats', i: 'int', is_: 'ints', s: 'string', sparse: 'raw' },
      ...{ ss: 'strings', t: 'tensor', tp: 'type', tps: 'raw', ts: 'tensors' },
    });
    expect(attributes.get('i')).toEqual({ kind: 'int', value: -(2n ** 62n) });
    expect(attributes.get('is_')).toEqual({ kind: 'ints', value: [1, 2 ** 40, -1] });
    expect(attributes.get('f')).toEqual({ kind: 'float', value: Math.fround(0.1) });
    expect(attributes.get('empty')).toEqual({ kind: 'ints', value: [] });
    expect(attributes.get('s')).toEqual({ kind: 'string', value: 'zwölf' });
  });

  it('makes a sparse initializer a Constant and treats initialized inputs as constants', () => {
    const pruned = graph.find('pruned')!;
    expect(pruned.producer!.op).toBe('Constant');
    expect([...pruned.producer!.attributes.keys()]).toEqual(['sparse_value']);
    expect(graph.inputs.map((value) => value.name)).not.toContain('w');
    expect(graph.find('w')!.data!.toNumbers()).toEqual([4, 3, 2, 1]);
  });

  it('reads local functions as graphs', () => {
    const [twice] = module.functions;
    expect(twice).toMatchObject({ domain: 'local', name: 'Twice', overload: 'v2', attributes: ['alpha'] });
    expect(twice!.body.nodes.map((entry) => entry.op)).toEqual(['Constant', 'Mul']);
    expect(twice!.body.nodes[0]!.attributes.get('value_float')!.kind).toBe('raw');
    expect(describeType(twice!.body.inputs[0]!.type)).toBe('f32["m"]');
    expect(twice!.defaults.length).toBe(1);
  });
});

describe('random modules', () => {
  it('survive writing and reading', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1e6 }), (seed) => {
        const module = randomModule(seed);
        for (const graph of module.graphs) stripForOnnx(graph);
        const once = decodeOnnx(encodeOnnx(module));
        const [first] = module.graphs;
        expect(once.graph().nodes.map((entry) => entry.output().name)).toEqual(
          first!.nodes.map((entry) => entry.output().name),
        );
        expect(describeModule(decodeOnnx(encodeOnnx(once)))).toEqual(describeModule(once));
      }),
      { numRuns: 200 },
    );
  });
});

/** Removes what no ONNX file can hold: encodings without QDQ, bytes that are no attribute. */
function stripForOnnx(graph: Graph): void {
  graph.quantizedPorts.clear();
  for (const value of graph.values) value.encoding = undefined;
  for (const node of graph.nodes) {
    for (const [name, attribute] of node.attributes) if (attribute.kind === 'raw') node.attributes.delete(name);
    for (const inner of node.subgraphs) stripForOnnx(inner);
  }
}
