import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { evaluateLogits } from '../../../evaluation/perplexity.ts';
import type { ManifestTarget } from '../../../targets/target.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { TensorType, tensorTypeName } from '../../../targets/tflite/schema-enums.ts';
import { tfliteTarget } from '../../../targets/tflite/tflite-target.ts';
import { demo } from '../../cli/run-npuc.ts';
import { emitContext, openSmallDecoder, type SmallDecoder } from '../small-decoder.ts';

const [TOKENS, SLOTS] = [16, 48];

let work: string;
let small: SmallDecoder;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-mediatek-'));
  small = await openSmallDecoder(demo);
}, 60_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

async function emit(
  decoder: SmallDecoder,
  scheme: string,
  name: string,
  { io = 'float', split = 1 as number | 'auto' }: { io?: 'float' | 'quantized'; split?: number | 'auto' } = {},
): Promise<{ out: string; target: ManifestTarget }> {
  const out = join(work, name);
  const quantized = await decoder.quantize(scheme, 'tflite', {}, 'mediatek');
  const context = { ...emitContext(out, TOKENS, SLOTS, io), split: { split, embedding: false, head: false } };
  return { out, target: await tfliteTarget.emit(quantized, context) };
}

describe('--profile mediatek', () => {
  test('has the names, shapes and types of the public flow', async () => {
    const { out, target } = await emit(small, 'w8a16', 'shapes', { io: 'quantized' });
    expect(target.contract).toBe('mediatek');
    const model = readTflite(readFileSync(join(out, target.graphs[0]!.file)));
    const { hiddenSize, headDim, keyValueHeads, layers, vocabSize } = small.config;
    for (const tokens of [TOKENS, 1]) {
      const { subgraph, inputs, outputs } = model.signatures.find(({ key }) => key === `${tokens}t${SLOTS}c`)!;
      const { tensors } = model.subgraphs[subgraph]!;
      const shapes = (ports: typeof inputs): Record<string, readonly number[]> =>
        Object.fromEntries(ports.map(({ name, tensor }) => [name, tensors[tensor]!.shape]));
      const cache = [1, keyValueHeads, SLOTS, headDim];
      expect(shapes(inputs)).toMatchObject({
        hidden: [1, tokens, hiddenSize],
        mask: [1, 1, tokens, SLOTS + tokens],
        rope: [1, 2, tokens, headDim],
        cache_k_0: cache,
        cache_v_0: cache,
      });
      expect(inputs).toHaveLength(3 + 2 * layers);
      expect(shapes(outputs)).toMatchObject({
        logits: [1, tokens, vocabSize],
        new_cache_k_0: cache,
        new_cache_v_0: cache,
      });
      expect(outputs).toHaveLength(1 + 2 * layers);
      for (const { tensor } of [...inputs, ...outputs]) {
        const { type, quantization } = tensors[tensor]!;
        expect(tensorTypeName(type)).toBe('INT16');
        expect(Array.from(quantization!.zeroPoint!)).toEqual([0]);
      }
      // One format from a cache's input to its output, in both graphs.
      const scaleOf = (ports: typeof inputs, name: string): number =>
        tensors[ports.find((port) => port.name === name)!.tensor]!.quantization!.scale![0]!;
      expect(scaleOf(outputs, 'new_cache_k_1')).toBe(scaleOf(inputs, 'cache_k_1'));
      const floats = tensors.filter(({ type, buffer }) => type === TensorType.FLOAT32 && buffer === 0);
      expect(floats.map(({ name }) => name)).toEqual([]);
    }
  });

  test.each([
    ['w8a16', 0.02],
    ['w4a16', 0.3],
  ])('%s in LiteRT is close to the float model', async (scheme, most) => {
    const { out, target } = await emit(small, scheme, `close-${scheme}`);
    const session = await tfliteTarget.open(out, target, {});
    const float = await small.openFloat(TOKENS, SLOTS);
    const reports = await evaluateLogits(float, new Map([['litert', session]]), small.text.slice(0, 128), {
      window: SLOTS,
      prefix: small.prefix,
    });
    await session.close();
    await float.close();
    expect(reports.get('litert')!.divergence).toBeLessThan(most);
  });

  test('shards run one after the other give what the whole gives, bit by bit', async () => {
    const ids = [...small.prefix, ...small.text.slice(0, 30)];
    const logits = async (session: DecoderSession): Promise<Float32Array[]> => {
      const rows = [...(await session.feed(ids.slice(0, 21), 'all')), ...(await session.feed(ids.slice(21), 'all'))];
      await session.close();
      return rows;
    };
    const whole = await emit(small, 'w8a16', 'whole');
    const cut = await emit(small, 'w8a16', 'cut', { split: 2 });
    expect(cut.target.files.filter((file) => file.endsWith('.tflite'))).toEqual([
      'tflite/model.1of2.tflite',
      'tflite/model.2of2.tflite',
    ]);
    const [one, two] = [
      await logits(await tfliteTarget.open(whole.out, whole.target, {})),
      await logits(await tfliteTarget.open(cut.out, cut.target, {})),
    ];
    expect(two).toEqual(one);
    // Only the last one has the head.
    const last = readTflite(readFileSync(join(cut.out, 'tflite/model.2of2.tflite')));
    expect(last.signatures[0]!.inputs[0]!.name).toMatch(/^layers\.\d+\.mlp_residual$/);
    expect(last.signatures[0]!.outputs.some(({ name }) => name === 'logits')).toBe(true);
  });

  test('more shards than layers is QN017', async () => {
    await expect(emit(small, 'w8a16', 'many', { split: small.config.layers + 1 })).rejects.toMatchObject({
      code: 'QN017',
    });
  });
});
