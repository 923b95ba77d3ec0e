import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { openSafetensors } from '../../../compiler/import/safetensors.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { hasSmolLM2, smolLM2Path } from '../../smollm2.ts';
import { encodeGguf, F32, STRING, U32 } from './write-gguf.ts';
import { encodeSafetensors, entry } from './write-safetensors.ts';

const root = mkdtempSync(join(tmpdir(), 'npuc-checkpoint-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const weights = encodeSafetensors({ w: entry('F32', [2], 0, 8) }, new Uint8Array(Float32Array.of(1, 2).buffer));
const tokenizer = {
  added_tokens: [{ id: 2, content: '<end>', special: true }],
  model: { type: 'BPE', vocab: { a: 0, b: 1 }, merges: [] },
};

let made = 0;
function folderOf(files: Record<string, unknown>): string {
  const folder = join(root, `model-${made++}`);
  mkdirSync(folder);
  for (const [name, value] of Object.entries(files)) {
    writeFileSync(
      join(folder, name),
      value instanceof Uint8Array || typeof value === 'string' ? value : JSON.stringify(value),
    );
  }
  return folder;
}

const complete = {
  'config.json': { architectures: ['LlamaForCausalLM'], vocab_size: 3, eos_token_id: 1 },
  'generation_config.json': { eos_token_id: [2] },
  'model.safetensors': weights,
  'tokenizer.json': tokenizer,
  'tokenizer_config.json': { eos_token: '<end>', chat_template: 'from the config' },
};

const fails = async (work: Promise<unknown>) => {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error('it did not fail');
};
const coded = (code: string, part = '') =>
  expect.objectContaining({ name: 'NpucError', code, message: expect.stringContaining(part) });

describe('a folder', () => {
  test('everything that it holds', async () => {
    const folder = folderOf(complete);
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint).toMatchObject({
      name: folder.split('/').at(-1),
      where: folder,
      config: complete['config.json'],
      generationConfig: { eos_token_id: [2] },
      chatTemplate: 'from the config',
    });
    expect(checkpoint.tokenizer!.encode('ab')).toEqual([0, 1]);
    expect(checkpoint.tokenizer!.eosIds).toEqual([2]);
    expect(Array.from(checkpoint.tensors.get('w')!.toFloats())).toEqual([1, 2]);
    checkpoint.close();
    expect(Array.from(checkpoint.tensors.get('w')!.toFloats())).toEqual([1, 2]);
    checkpoint.close();
  });

  test('without tokenizer and generation_config.json', async () => {
    const folder = folderOf({ 'config.json': {}, 'model.safetensors': weights });
    const { tokenizer, generationConfig, chatTemplate, close } = await openCheckpoint(folder);
    expect([tokenizer, generationConfig, chatTemplate]).toEqual([undefined, undefined, undefined]);
    close();
  });

  test('chat_template.jinja takes the place of the one in tokenizer_config.json', async () => {
    const checkpoint = await openCheckpoint(folderOf({ ...complete, 'chat_template.jinja': 'from the file' }));
    expect(checkpoint.chatTemplate).toBe('from the file');
    expect(checkpoint.tokenizer!.applyChatTemplate([])).toBe('from the file');
    checkpoint.close();
  });

  test('weights: the index first, then model.safetensors, then the only one', async () => {
    const other = encodeSafetensors({ other: entry('F32', [2], 0, 8) }, new Uint8Array(8));
    const index = { weight_map: { other: 'shard.safetensors' } };
    const both = { ...complete, 'shard.safetensors': other, 'model.safetensors.index.json': index };
    const names = async (source: string) => {
      const checkpoint = await openCheckpoint(source);
      checkpoint.close();
      return [...checkpoint.tensors.keys()];
    };
    expect(await names(folderOf(both))).toEqual(['other']);
    const two = folderOf({ ...complete, 'shard.safetensors': other });
    expect(await names(two)).toEqual(['w']);
    expect(await names(join(two, 'shard.safetensors'))).toEqual(['other']);
    expect(await names(join(folderOf(both), 'model.safetensors.index.json'))).toEqual(['other']);
    expect(await names(folderOf({ 'config.json': {}, 'any.safetensors': other }))).toEqual(['other']);
  });

  test.skipIf(!hasMaterial)('stories260k', async () => {
    const checkpoint = await openCheckpoint(materialPath('stories260k/hf'));
    expect([checkpoint.tensors.size, checkpoint.config.hidden_size]).toEqual([47, 64]);
    expect(checkpoint.tokenizer!.encode('Once upon a time')).toEqual([1, 403, 407, 261, 378]);
    expect(checkpoint.tokenizer!.eosIds).toEqual([2]);
    checkpoint.close();
  });

  test.skipIf(!hasMaterial)('every random checkpoint of the material', async () => {
    for (const name of readdirSync(materialPath('tiny-arch-dev'))) {
      const checkpoint = await openCheckpoint(materialPath('tiny-arch-dev', name));
      expect(checkpoint.tensors.get('model.embed_tokens.weight')!.shape[0], name).toBe(checkpoint.config.vocab_size);
      checkpoint.close();
    }
  });
});

describe('the digest', () => {
  test('is of the bytes, not of the place', async () => {
    const folder = folderOf(complete);
    const first = await openCheckpoint(folder);
    const digest = await first.digest();
    expect(digest).toMatch(/^[0-9a-f]{64}$/);
    first.close();
    const moved = join(root, 'somewhere else');
    renameSync(folder, moved);
    expect(await digestOf(moved)).toBe(digest);
    for (const name of Object.keys(complete)) {
      const changed = join(root, `changed ${name}`);
      cpSync(moved, changed, { recursive: true });
      const bytes = readFileSync(join(changed, name));
      if (name === 'model.safetensors') bytes[bytes.length - 1] ^= 1;
      writeFileSync(join(changed, name), name === 'model.safetensors' ? bytes : `${bytes} `);
      expect(await digestOf(changed), name).not.toBe(digest);
    }
    writeFileSync(join(moved, 'README.md'), 'does not count');
    expect(await digestOf(moved)).toBe(digest);
  });

  test('moves along and can be stopped', async () => {
    const many = 5 << 20;
    const header = { w: entry('F32', [many], 0, many * 4) };
    const folder = folderOf({
      'config.json': {},
      'model.safetensors': encodeSafetensors(header, new Uint8Array(many * 4)),
    });
    const checkpoint = await openCheckpoint(folder);
    const controller = new AbortController();
    const stopped = checkpoint.digest({
      progress: () => controller.abort(new Error('enough')),
      signal: controller.signal,
    });
    expect(await fails(stopped)).toMatchObject({ message: 'enough' });
    const steps: number[] = [];
    let total = 0;
    await checkpoint.digest({
      progress: (done, all) => {
        steps.push(done);
        total = all;
      },
    });
    expect(steps.length).toBeGreaterThan(3);
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
    expect(steps.at(-1)).toBe(total);
    checkpoint.close();
  });
});

async function digestOf(source: string): Promise<string> {
  const checkpoint = await openCheckpoint(source);
  checkpoint.close();
  return checkpoint.digest();
}

describe('GGUF', () => {
  const metadata = [
    ['general.architecture', STRING, 'llama'],
    ['llama.block_count', U32, 1],
    ['llama.context_length', U32, 8],
    ['llama.embedding_length', U32, 4],
    ['llama.feed_forward_length', U32, 4],
    ['llama.attention.head_count', U32, 1],
    ['llama.attention.layer_norm_rms_epsilon', F32, 1e-5],
  ] as const;
  const embedding = { name: 'token_embd.weight', dims: [4, 2], type: 0, data: new Uint8Array(32) };
  const gguf = encodeGguf({ metadata, tensors: [embedding] });

  test('a file, and a folder with only that', async () => {
    const folder = folderOf({ 'tiny.gguf': gguf });
    for (const source of [folder, join(folder, 'tiny.gguf')]) {
      const checkpoint = await openCheckpoint(source);
      expect(checkpoint.name).toBe('tiny');
      expect(checkpoint.config.vocab_size).toBe(2);
      expect(checkpoint.tokenizer).toBeUndefined();
      checkpoint.close();
    }
  });

  test.skipIf(!hasSmolLM2)('SmolLM2', async () => {
    const checkpoint = await openCheckpoint(smolLM2Path());
    expect(checkpoint.name).toBe('SmolLM2-135M-Instruct.Q4_1');
    expect(checkpoint.chatTemplate).toContain('<|im_start|>');
    checkpoint.close();
  });
});

describe('bad input', () => {
  const cases: [string, Record<string, unknown>, string, string][] = [
    ['an empty folder', {}, 'IM110', 'no weights'],
    ['only pickled weights', { 'config.json': {}, 'pytorch_model.bin': 'x' }, 'IM111', 'pytorch_model.bin'],
    ['only an adapter', { 'adapter_config.json': {}, 'README.md': 'x' }, 'IM110', 'no weights'],
    ['two weights', { 'config.json': {}, 'a.safetensors': weights, 'b.safetensors': weights }, 'IM110', '2 files'],
    ['two GGUFs', { 'a.gguf': 'x', 'b.gguf': 'y' }, 'IM110', '2 files'],
    ['no config.json', { 'model.safetensors': weights }, 'IM110', 'config.json'],
    ['a config.json with NaN', { ...complete, 'config.json': '{"rms_norm_eps": NaN}' }, 'IO003', 'not JSON'],
    ['a config.json that is a list', { ...complete, 'config.json': '[]' }, 'IO003', 'object'],
    ['an empty config.json', { ...complete, 'config.json': '' }, 'IO003', 'not JSON'],
    ['a truncated tokenizer.json', { ...complete, 'tokenizer.json': '{"model": {' }, 'IO003', 'not JSON'],
    ['an unusable tokenizer.json', { ...complete, 'tokenizer.json': {} }, 'IM131', ''],
    ["another model's tokenizer", { ...complete, 'config.json': { vocab_size: 2 } }, 'IM130', 'ids up to 2'],
    ['an end-of-text id beyond', { ...complete, 'generation_config.json': { eos_token_id: 3 } }, 'IM130', 'id is 3'],
    ['truncated weights', { ...complete, 'model.safetensors': weights.subarray(0, weights.length - 1) }, 'IO003', ''],
    ['a GGUF that is none', { 'a.gguf': 'not GGUF, but long enough for one' }, 'IM120', ''],
  ];
  test.each(cases)('%s', async (_, files, code, part) => {
    const folder = folderOf(files);
    const before = openFiles();
    expect(await fails(openCheckpoint(folder))).toEqual(coded(code, part));
    expect(openFiles()).toBe(before);
  });

  test('nothing there, another kind of file, a hub name that is none', async () => {
    expect(await fails(openCheckpoint(join(root, 'nothing')))).toEqual(coded('IM110', 'no file or folder'));
    symlinkSync('circle', join(root, 'circle'));
    expect(await fails(openCheckpoint(join(root, 'circle')))).toEqual(coded('IO001', 'circle'));
    const folder = folderOf({ 'model.onnx': 'x' });
    expect(await fails(openCheckpoint(join(folder, 'model.onnx')))).toEqual(coded('IM110', 'model.onnx'));
    expect(await fails(openCheckpoint('hf:a/b/c'))).toEqual(coded('HB001'));
  });

  test('a shard that lies closes the ones before it', async () => {
    const folder = folderOf({
      'config.json': {},
      'good.safetensors': weights,
      'bad.safetensors': weights.subarray(0, 20),
      'model.safetensors.index.json': { weight_map: { w: 'good.safetensors', v: 'bad.safetensors' } },
    });
    const before = openFiles();
    expect(() => openSafetensors(join(folder, 'model.safetensors.index.json'))).toThrow(coded('IO003'));
    expect(openFiles()).toBe(before);
  });
});

/** Open file descriptors of this process; only Linux can count them. */
function openFiles(): number {
  return process.platform === 'linux' ? readdirSync('/proc/self/fd').length : 0;
}
