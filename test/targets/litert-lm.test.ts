import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundleLitertLm, type LitertLmAgreement } from '../../cli/jobs/bundle-litertlm.ts';
import { encodeMessage } from '../../compiler/export/protobuf.ts';
import type { Field, Schema } from '../../compiler/import/protobuf.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { DecoderSession, MASK_VALUE } from '../../compiler/runtime/decoder-session.ts';
import { loadLitert } from '../../compiler/runtime/litert.ts';
import { runLitertLm } from '../../compiler/runtime/litert-lm.ts';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import { describeFile, type Manifest, readManifest, writeManifest } from '../../targets/manifest.ts';
import type { ManifestTarget } from '../../targets/target.ts';
import { lowerGraphs } from '../../targets/tflite/lower-graph.ts';
import { tfliteTarget } from '../../targets/tflite/tflite-target.ts';
import { encodeTflite } from '../../targets/tflite/write.ts';
import { litertLm } from './litert-lm-or-skip.ts';
import { CHECKPOINTS, emitContext, openSmallDecoder, type SmallDecoder } from './small-decoder.ts';

const CACHE = 96;
const TOKENS = [32, 8];
const GENERATED = 64;
const PROMPT = 'Once upon a time, there was a little girl';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-litert-lm-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

interface Compiled {
  readonly folder: string;
  readonly target: ManifestTarget;
  /** The step of integer logits; 0 where they are floats. */
  readonly step: number;
}

/** A compiled folder without calibration or evaluation of its own: one checkpoint is calibrated once for all schemes. */
async function compile(small: SmallDecoder, scheme: string): Promise<Compiled> {
  const folder = mkdtempSync(join(work, `${scheme}-`));
  const decoder = await small.quantize(scheme, 'tflite', {}, 'litert-lm');
  const shapes = { tokens: TOKENS, caches: [CACHE] };
  const target = await tfliteTarget.emit(decoder, { ...emitContext(folder, 32, CACHE), shapes });
  const { checkpoint } = small.model!;
  for (const [name, text] of checkpoint.tokenizerFiles) writeFileSync(join(folder, name), text);
  const tokenizer = [...checkpoint.tokenizerFiles.keys()];
  const manifest: Manifest = {
    format: 2,
    npuc: 'test',
    source: { name: checkpoint.name, digest: '', architecture: decoder.config.architecture },
    soc: { name: 'SM8750', arch: 'v79' },
    recipe: decoder.recipe,
    shapes: { tokens: TOKENS, cache: [CACHE] },
    calibration: { digest: '', chat: false, windows: 0, windowTokens: 0 },
    toolchain: {},
    targets: { tflite: target },
    tokenizer,
    files: [...target.files, ...tokenizer].map((path) => describeFile(folder, path)),
  };
  writeManifest(folder, manifest);
  return { folder, target, step: decoder.plan.activations.get('logits')?.encoding.scale[0] ?? 0 };
}

/** A unigram SentencePiece model: <unk>, <s>, </s>, the pieces, and as many more as fill the vocabulary. */
function makeSentencePiece(size: number, pieces: readonly string[]): Uint8Array {
  const piece: Schema = schemaOf('SentencePiece', [
    { number: 1, name: 'piece', kind: 'string' },
    { number: 2, name: 'score', kind: 'float' },
    { number: 3, name: 'type', kind: 'int' },
  ]);
  const trainer = schemaOf('TrainerSpec', [{ number: 3, name: 'modelType', kind: 'int' }]);
  const model = schemaOf('ModelProto', [
    { number: 1, name: 'pieces', kind: 'messages', schema: piece },
    { number: 2, name: 'trainer', kind: 'message', schema: trainer },
  ]);
  const [NORMAL, UNKNOWN, CONTROL] = [1, 2, 3];
  const special = ['<unk>', '<s>', '</s>'].map((text, id) => ({ piece: text, type: id === 0 ? UNKNOWN : CONTROL }));
  const fill = Array.from({ length: size - 3 - pieces.length }, (_, i) => `filler${i}`);
  const normal = [...pieces, ...fill].map((text, i) => ({ piece: text, score: -i, type: NORMAL }));
  return encodeMessage(model, { pieces: [...special, ...normal], trainer: { modelType: 1 } }).toBytes();
}

function schemaOf(title: string, fields: readonly Field[]): Schema {
  return { title, fields, byNumber: new Map(), keepsSpan: false };
}

/** Gives a compiled folder a chat template. */
function addTemplate(folder: string, template: string): void {
  const name = 'chat_template.jinja';
  writeFileSync(join(folder, name), template);
  const manifest = readManifest(folder);
  const files = [...manifest.files.filter(({ path }) => path !== name), describeFile(folder, name)];
  writeManifest(folder, { ...manifest, files });
}

/**
 * How far LiteRT-LM's choice may be from the best logit of LiteRT.js, in steps of the logits. Where weights or activations
 * are integers of 8 bits, WebAssembly and x86 round single elements of the same kernels differently (docs/litert-lm.md).
 */
const STEPS: Readonly<Record<string, number>> = { w8a8: 2 };
/** Activations are quantized by the kernel, row by row: one rounding changes a logit by a little of its own. */
const DYNAMIC_GAP = 0.15;

describe.skipIf(!litertLm).each(CHECKPOINTS)('LiteRT-LM runs $name', ({ source }) => {
  let small: SmallDecoder;
  beforeAll(async () => {
    small = await openSmallDecoder(source());
  }, 120_000);

  test.each(['fp16', 'w8a16', 'w4a16', 'w8a8', 'dynamic-int8', 'dynamic-int4'])(
    '%s: 64 greedy tokens are ours',
    async (scheme) => {
      const { folder, target, step } = await compile(small, scheme);
      const wanted = { fp16: undefined, w8a8: 'i8', w8a16: 'i16', w4a16: 'i16' }[scheme];
      expect(target.ports.kv_cache_k_0?.dtype).toBe(wanted);
      const out = join(folder, 'model.litertlm');
      const verify = { prompt: PROMPT, tokens: GENERATED };
      const { verified, warnings } = await bundleLitertLm({ folder, out, force: false, verify, note: () => {} });
      const { ids, native, js } = verified as LitertLmAgreement;
      expect(warnings).toEqual([]);
      expect(ids.length).toBe(GENERATED);
      // The same kernels, driven by us: not one token differs, whatever the scheme.
      expect(native).toMatchObject({ differing: [], gap: 0 });
      const allowed = scheme.startsWith('dynamic') ? DYNAMIC_GAP : (STEPS[scheme] ?? 0) * step + 1e-3;
      expect(js.gap).toBeLessThanOrEqual(allowed);
      expect(readdirSync(folder).filter((name) => name.includes('.litertlm'))).toEqual(['model.litertlm']);
    },
    120_000,
  );

  test('a prompt that fills the context to its end', async () => {
    const { folder } = await compile(small, 'w8a16');
    const { text } = { text: small.model!.checkpoint.tokenizer!.decode(small.text.slice(0, 80)) };
    const verify = { prompt: text, tokens: GENERATED };
    const out = join(folder, 'model.litertlm');
    const { verified } = await bundleLitertLm({ folder, out, force: false, verify, note: () => {} });
    // Its last chunk of 32 reaches past the 96 slots; then tokens go on until none is left.
    expect(verified!.ids.length).toBeGreaterThan(8);
    expect(verified!.native.differing).toEqual([]);
    expect(verified!.js.gap).toBeLessThanOrEqual(1e-3);
  }, 120_000);

  test('a chat is put into the template as we do it, with the special tokens it names', async () => {
    const { folder } = await compile(small, 'fp16');
    const template =
      "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + eos_token }}" +
      "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";
    addTemplate(folder, template);
    const verify = { prompt: 'a "b" <c>\nd', tokens: 4 };
    const bundle = (out: string) =>
      bundleLitertLm({ folder, out: join(folder, out), force: false, verify, note: () => {} });
    expect((await bundle('model.litertlm')).verified!.ids.length).toBeGreaterThan(0);
    // The start token is there twice when a template spells it out.
    addTemplate(
      folder,
      template.replace('{{ bos_token }}', small.model!.checkpoint.tokenizer!.specialTokens.bos_token!),
    );
    await expect(bundle('other.litertlm')).rejects.toMatchObject({ code: 'TF404' });
    expect(readdirSync(folder)).not.toContain('other.litertlm');
  }, 120_000);

  test('a SentencePiece model of the user is what it reads texts with', async () => {
    const { folder, target } = await compile(small, 'fp16');
    const path = join(folder, 'tokenizer.model');
    writeFileSync(path, makeSentencePiece(target.protocol.vocabSize, ['▁on', 'ce', '▁up']));
    const out = join(folder, 'model.litertlm');
    const { bundle } = await bundleLitertLm({ folder, out, force: false, tokenizer: path, note: () => {} });
    expect(bundle.tokenizer).toBe('sentencepiece');
    const { ids } = await runLitertLm(litertLm!.library, out, { texts: ['once up'] });
    expect(ids).toEqual([[3, 4, 5]]);
  }, 120_000);

  test('a bundle that it cannot run is an error with its own words', async () => {
    const path = join(work, 'broken.litertlm');
    writeFileSync(path, 'LITERTLM and no more');
    await expect(runLitertLm(litertLm!.library, path, {})).rejects.toMatchObject({ code: 'TF403', exitCode: 2 });
  }, 30_000);
});

describe('hidden slots in the softmax', () => {
  test.each([
    [1024, 0.062],
    [4096, 0.25],
  ])("of %i, LiteRT's 16-bit kernel gives all but one a share of %d, ours none", async (slots, share) => {
    const text = `npuir 1\nir 10\nopset 23\n\ngraph @g
      in %x : f32[1,${slots}] q(i16, scale ${Math.fround(60 / 32767)})
      %y : f32[1,${slots}] q(i16, scale 3.0517578125e-5) = Softmax(%x) {axis -1}
      out %y\nend`;
    const hiddenShare = async (form: 'float' | 'litert-lm'): Promise<number> => {
      const model = await loadLitert(encodeTflite(lowerGraphs([parseModule(text).graph()], form)));
      const data = new Float32Array(slots).fill(MASK_VALUE);
      data[0] = 0;
      const { y } = await model.signatures.g!.run({ x: { dtype: 'f32', shape: [1, slots], data } });
      model.dispose();
      return (y!.data as Float32Array).subarray(1).reduce((sum, each) => sum + each, 0);
    };
    expect(await hiddenShare('float')).toBeCloseTo(share, 3);
    expect(await hiddenShare('litert-lm')).toBe(0);
  });
});

describe.each(CHECKPOINTS.slice(0, 1))('hidden slots of $name', ({ source }) => {
  // LiteRT-LM does not empty its cache between sessions, and fills chunks up with rows that mean nothing.
  test.each(['w8a8', 'w8a16'])(
    '%s: what lies in them changes no bit',
    async (scheme) => {
      const small = await openSmallDecoder(source());
      const { folder, target } = await compile(small, scheme);
      const model = await loadLitert(join(folder, target.graphs[0]!.file));
      const open = (change: (feeds: Tensors) => Tensors): DecoderSession =>
        new DecoderSession({
          protocol: target.protocol,
          graphs: target.graphs.map(({ tokens, cache, entry }) => {
            const { inputs, outputs, run } = model.signatures[entry!]!;
            const runner = { engine: model.engine, inputs, outputs, close: async () => {} };
            return { tokens, cache, runner: { ...runner, run: (feeds: Tensors) => run(change(feeds)) } };
          }),
        });
      const soil = (feeds: Tensors): Tensors => {
        const start = Number(feeds.input_pos!.data[0]);
        const soiled = Object.entries(feeds).map(([name, tensor]) => {
          if (!name.startsWith('kv_cache')) return [name, tensor];
          const data = tensor.data.slice() as Int8Array;
          const [, heads, slots, width] = tensor.shape as [number, number, number, number];
          for (let head = 0; head < heads; head++)
            data.fill(101, (head * slots + start) * width, (head + 1) * slots * width);
          return [name, { ...tensor, data }];
        });
        return Object.fromEntries(soiled) as Tensors;
      };
      const [clean, dirty] = [open((feeds) => feeds), open(soil)];
      const ids = small.text.slice(0, 60);
      for (const part of [ids.slice(0, 44), ids.slice(44, 45), ids.slice(45)]) {
        const [expected, got] = [await clean.feed(part), await dirty.feed(part)];
        expect(got).toEqual(expected);
      }
      model.dispose();
    },
    120_000,
  );
});
