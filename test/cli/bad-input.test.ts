import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { demo, type Outcome, quick, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-bad-input-'));
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

/** A copy of the demo checkpoint that a test may spoil. */
function spoiledDemo(name: string, spoil: (folder: string) => void): string {
  const folder = join(work, name);
  cpSync(demo, folder, { recursive: true });
  execFileSync('chmod', ['-R', 'u+w', folder]);
  spoil(folder);
  return folder;
}

function editJson(path: string, edit: (json: Record<string, unknown>) => void): void {
  const json = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  edit(json);
  writeFileSync(path, JSON.stringify(json));
}

/** Rewrites a safetensors header, keeping the data. */
function editHeader(
  path: string,
  edit: (header: Record<string, { data_offsets: number[]; shape: number[]; dtype: string }>) => void,
): void {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length)) as Parameters<typeof edit>[0];
  edit(header);
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([size, text, bytes.subarray(8 + length)]));
}

/** Overwrites one element of an f16 tensor. */
function setHalf(path: string, tensor: string, index: number, bits: number): void {
  const bytes = readFileSync(path);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<
    string,
    { data_offsets: number[]; dtype: string }
  >;
  expect(header[tensor]!.dtype).toBe('F16');
  bytes.writeUInt16LE(bits, start + header[tensor]!.data_offsets[0]! + 2 * index);
  writeFileSync(path, bytes);
}

/** One coded line, a hint or a place, no stack trace, and nothing left in the output's place. */
function expectCoded(outcome: Outcome, code: RegExp, exit: number, out: string): void {
  const line = outcome.stderr.split('\n').find((each) => /^[A-Z]{2}\d{3} /.test(each));
  expect(line, outcome.stderr).toMatch(code);
  expect(outcome.code).toBe(exit);
  expect(outcome.stderr).not.toMatch(/\n\s+at .*[:(]\d+/);
  expect(existsSync(out)).toBe(false);
  expect(readdirSync(work).filter((name) => name.includes('.partial'))).toEqual([]);
}

const compile = async (source: string, ...args: string[]): Promise<{ outcome: Outcome; out: string }> => {
  const out = join(work, 'out');
  return { outcome: await runNpuc(['compile', source, '--target', 'onnx', '--out', out, ...quick, ...args]), out };
};

describe('a checkpoint that is broken', () => {
  const weights = 'model.safetensors';
  test.each<[string, (folder: string) => void, RegExp]>([
    ['truncated weights', (folder) => truncateSync(join(folder, weights), 100_000), /^(IM|IO)\d{3} /],
    ['truncated header', (folder) => truncateSync(join(folder, weights), 20), /^(IM|IO)\d{3} /],
    ['empty weights', (folder) => truncateSync(join(folder, weights), 0), /^(IM|IO)\d{3} /],
    [
      'a header length that lies',
      (folder) => {
        const bytes = readFileSync(join(folder, weights));
        bytes.writeBigUInt64LE(2n ** 62n, 0);
        writeFileSync(join(folder, weights), bytes);
      },
      /^(IM|IO)\d{3} /,
    ],
    [
      'a tensor past the end',
      (folder) =>
        editHeader(join(folder, weights), (header) => {
          const last = Object.keys(header)
            .filter((key) => key !== '__metadata__')
            .at(-1)!;
          header[last]!.data_offsets = header[last]!.data_offsets.map((offset) => offset + 1e9);
        }),
      /^(IM|IO)\d{3} /,
    ],
    [
      'a missing tensor',
      (folder) =>
        editHeader(join(folder, weights), (header) => {
          const name = 'model.layers.0.self_attn.k_proj.weight';
          header[`${name}.elsewhere`] = header[name]!;
          delete header[name];
        }),
      /^IM403 .*k_proj/,
    ],
    [
      'a weight that is no number',
      (folder) => setHalf(join(folder, weights), 'model.layers.1.mlp.down_proj.weight', 5, 0x7e00),
      /^QT010 layers\.1\.down_proj/,
    ],
    [
      'an infinite weight of a norm',
      (folder) => setHalf(join(folder, weights), 'model.layers.0.input_layernorm.weight', 3, 0x7c00),
      /^QT010 layers\.0\.attn_norm/,
    ],
    [
      'an infinite weight of a token that calibration may not meet',
      (folder) => setHalf(join(folder, weights), 'model.embed_tokens.weight', 256 * 2047, 0x7c00),
      /^QT010 /,
    ],
    [
      'a shape that does not fit',
      (folder) => editJson(join(folder, 'config.json'), (config) => Object.assign(config, { intermediate_size: 96 })),
      /^IM404 /,
    ],
    [
      'an unknown architecture',
      (folder) =>
        editJson(join(folder, 'config.json'), (config) =>
          Object.assign(config, { architectures: ['RwkvForCausalLM'] }),
        ),
      /^IM401 .*Rwkv/,
    ],
    [
      'config.json that is no JSON',
      (folder) => writeFileSync(join(folder, 'config.json'), '{"hidden_size": '),
      /^(IM|IO)\d{3} /,
    ],
    ['no config.json', (folder) => rmSync(join(folder, 'config.json')), /^IM110 /],
    ['no tokenizer', (folder) => rmSync(join(folder, 'tokenizer.json')), /^IM110 .*tokenizer/],
    [
      'a tokenizer that is no JSON',
      (folder) => writeFileSync(join(folder, 'tokenizer.json'), 'hello'),
      /^(IM|IO)\d{3} /,
    ],
    [
      'a tokenizer larger than the vocabulary',
      (folder) =>
        editJson(join(folder, 'tokenizer.json'), (json) => {
          const added = json.added_tokens as unknown[];
          added.push({
            id: 99_999,
            content: '<|extra|>',
            special: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
          });
        }),
      /^IM\d{3} .*token/,
    ],
  ])('%s', async (name, spoil, code) => {
    const { outcome, out } = await compile(spoiledDemo(name.replaceAll(' ', '-'), spoil));
    expectCoded(outcome, code, 2, out);
  });

  test('a GGUF whose header is cut', async () => {
    const path = join(work, 'cut.gguf');
    writeFileSync(path, Buffer.concat([Buffer.from('GGUF'), Buffer.from([3, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0])]));
    const { outcome, out } = await compile(path);
    expectCoded(outcome, /^(IM|IO)\d{3} /, 2, out);
  });
  test('an ONNX file that is none', async () => {
    const path = join(work, 'none.onnx');
    writeFileSync(path, Buffer.from([0x3a, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3]));
    const { outcome, out } = await compile(path);
    expectCoded(outcome, /^(IM|IO)\d{3} /, 2, out);
  });
  test('a path that is not there', async () => {
    const { outcome, out } = await compile(join(work, 'nowhere'));
    expectCoded(outcome, /^IM110 /, 2, out);
  });
});

describe('a request that makes no sense', () => {
  test.each<[string, string[], RegExp]>([
    ['unknown SoC', ['--soc', 'SM9999'], /^TG001 .*SM9999/],
    ['unknown scheme', ['--scheme', 'w2a2'], /^QT101 .*w2a2/],
    ['a block that is no power of two', ['--block', '48'], /^QT101 /],
    ['dynamic integers on HTP', ['--scheme', 'dynamic-int8', '--target', 'qnn'], /^TG002 HTP has no dynamic/],
    ['cache equal to the tokens', ['--tokens', '64', '--cache', '64'], /^IM410 /],
    [
      'tokens that some caches have no room for',
      ['--tokens', '16,64,128', '--cache', '256,64,128'],
      /^IM410 .*: not so --cache 64 with --tokens 64, --cache 64 with --tokens 128, --cache 128 with --tokens 128$/m,
    ],
    ['cache above max_position_embeddings', ['--cache', '65536'], /^IM411 .*65536/],
    ['a table for a target that is not asked for', ['--embedding', 'lut-f16'], /^CL001 --embedding lut-f16 .*qnn/],
    [
      'an unknown place of the embedding',
      ['--embedding', 'lut'],
      /^CL002 --embedding takes in-graph, lut-f16 or lut-u8/,
    ],
    ['an unknown flag', ['--frobnicate'], /^CL001 /],
    ['a number that is none', ['--cache', 'many'], /^CL00[12] /],
    ['an unknown target', ['--target', 'coreml'], /^CL002 .*target/],
    ['a calibration text that is not there', ['--calibrate', '/nowhere/text.txt'], /^IO001 .*text\.txt/],
    ['an evaluation text that is not there', ['--evaluate', '/nowhere/text.txt'], /^IO001 .*text\.txt/],
    ['a prompt longer than the cache', ['--prompt', 'and so on '.repeat(64)], /^RT102 .*--prompt/],
    ['a single token to evaluate on', ['--eval-tokens', '1'], /^QT110 /],
    ['a configuration file that is not there', ['--config', 'nowhere.yaml'], /^CL002 /],
  ])('%s', async (_, args, code) => {
    const { outcome, out } = await compile(demo, ...args);
    expectCoded(outcome, code, 2, out);
  });

  test('an unknown SoC names the nearest ones', async () => {
    const { outcome } = await compile(demo, '--soc', 'SM8751');
    expect(outcome.stderr).toMatch(/hint: .*SM8750/);
  });
  test('an unknown command', async () => {
    const outcome = await runNpuc(['compil']);
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toMatch(/^CL001 /m);
  });
  test('a calibration text that is too short', async () => {
    const path = join(work, 'short.txt');
    writeFileSync(path, 'too short');
    const { outcome, out } = await compile(demo, '--calibrate', path);
    expectCoded(outcome, /^QT110 /, 2, out);
  });
  test('an output folder that is not ours stays as it is', async () => {
    const folder = join(work, 'foreign');
    mkdirSync(folder);
    writeFileSync(join(folder, 'thesis.txt'), 'years of work');
    const outcome = await runNpuc(['compile', demo, '--target', 'onnx', '--out', folder, ...quick]);
    expect(outcome.stderr).toMatch(/^CL003 /m);
    expect(outcome.code).toBe(2);
    expect(readFileSync(join(folder, 'thesis.txt'), 'utf8')).toBe('years of work');
  });
  test('with --json the error is JSON on stdout', async () => {
    const { outcome } = await compile(demo, '--soc', 'SM9999', '--json');
    expect(JSON.parse(outcome.stdout)).toMatchObject({ error: { code: 'TG001' } });
  });
});

test('an evaluation that cannot be done is refused before calibration', async () => {
  const out = join(work, 'early');
  const args = ['compile', demo, '--target', 'onnx', '--out', out, '--evaluate', '/nowhere/text.txt'];
  const outcome = await runNpuc(args);
  expect(outcome.stderr).toMatch(/^IO001 /m);
  expect(outcome.stderr).not.toMatch(/calibrate/);
});

describe('a machine that fails', () => {
  test.skipIf(process.getuid?.() !== 0).each([
    ['while the weights are written', 'onnx', '300k'],
    ['at one of the small files', 'tflite', '2500k'],
  ])('a disk that fills %s', async (_, target, size) => {
    const disk = join(work, 'small-disk');
    mkdirSync(disk, { recursive: true });
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', disk]);
    try {
      const out = join(disk, 'out');
      const outcome = await runNpuc(['compile', demo, '--target', target, '--out', out, ...quick]);
      expect(outcome.stderr).toMatch(/^IO002 /m);
      expect(outcome.code).toBe(2);
      expect(readdirSync(disk)).toEqual([]);
    } finally {
      execFileSync('umount', [disk]);
    }
  });

  const toolchain = findToolchain('qnn');
  if (!toolchain) {
    if (process.env.CI) throw new Error('the QNN toolchain is absent: in CI that is a failure');
    console.warn('SKIPPED: the QNN toolchain is absent, the killed compile child is not tested');
  }
  test.skipIf(!toolchain)('a compile child that is killed', async () => {
    const out = join(work, 'killed');
    let killed = false;
    const outcome = await runNpuc(['compile', demo, '--target', 'qnn', '--out', out, ...quick], {
      onStart: (child) => {
        const timer = setInterval(() => {
          if (child.exitCode !== null) clearInterval(timer);
          try {
            const pids = execFileSync('pgrep', ['-P', String(child.pid), '-f', 'native-host'], {
              encoding: 'utf8',
            }).trim();
            for (const pid of pids.split('\n')) process.kill(Number(pid), 'SIGKILL');
            killed = true;
            clearInterval(timer);
          } catch {
            // pgrep exits 1 until the child is there.
          }
        }, 20);
      },
    });
    expect(killed).toBe(true);
    expectCoded(outcome, /^RT20[12] /, 2, out);
  });

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('%s leaves nothing behind and exits with %i', async (signal, code) => {
    const out = join(work, 'interrupted');
    const outcome = await runNpuc(
      ['compile', demo, '--target', 'onnx', '--out', out, ...quick, '--calibration-windows', '64'],
      {
        onStart: (child) => {
          const timer = setInterval(() => {
            if (child.exitCode !== null) return clearInterval(timer);
            if (readdirSync(work).some((name) => name.startsWith('interrupted.partial'))) {
              clearInterval(timer);
              child.kill(signal);
            }
          }, 10);
        },
      },
    );
    expect(outcome.code).toBe(code);
    expect(readdirSync(work).filter((name) => name.startsWith('interrupted'))).toEqual([]);
  });
});
