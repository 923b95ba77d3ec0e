import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { litertLm } from '../targets/litert-lm-or-skip.ts';
import { demo, runNpuc } from './run-npuc.ts';

const FLAGS = ['--target', 'tflite', '--tokens', '16', '--cache', '64', '--calibration-windows', '2'];
const SMALL = [...FLAGS, '--evaluate', 'none', '--quiet'];

let work: string;
let build: string;
beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-bundle-'));
  build = join(work, 'build');
  const args = ['compile', demo, ...SMALL, '--profile', 'litert-lm', '--scheme', 'w8a16', '--out', build];
  const { code, stderr } = await runNpuc(args);
  expect(code, stderr).toBe(0);
}, 120_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

describe('npuc bundle litertlm', () => {
  test('writes one file, the same bytes each time, which check and inspect read', async () => {
    const paths = ['a.litertlm', 'b.litertlm'].map((name) => join(work, name));
    for (const out of paths) {
      const { code, stdout, stderr } = await runNpuc(['bundle', 'litertlm', build, '--out', out, '--json']);
      expect(code, stderr).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        bundle: { tokenizer: 'hf', metadata: { startToken: [0], stopTokens: [[1]], maxTokens: 64 } },
        warnings: [],
      });
    }
    expect(readFileSync(paths[0]!).equals(readFileSync(paths[1]!))).toBe(true);
    expect(readdirSync(work).filter((name) => name.includes('partial'))).toEqual([]);
    expect((await runNpuc(['bundle', 'check', paths[0]!])).stdout).toMatch(/is whole/);
    const inspected = JSON.parse((await runNpuc(['inspect', paths[0]!, '--json'])).stdout);
    const { sections } = inspected.data ?? inspected;
    expect(sections.map(({ type }: { type: string }) => type)).toEqual([
      'llm-metadata',
      'hf-tokenizer',
      'tflite-model',
    ]);
    const { stdout } = await runNpuc(['inspect', paths[0]!]);
    expect(stdout).toMatch(/stop tokens \[\[1\]\]/);
    expect(stdout).toMatch(/kv_cache_k_0 INT16\[1,2,64,64\]/);
  }, 120_000);

  test.skipIf(!litertLm)(
    '--verify asks LiteRT-LM; npuc generate runs the file with its kernels too',
    async () => {
      const out = join(work, 'verified.litertlm');
      const prompt = ['--prompt', 'The king said', '--max-tokens', '12'];
      const { code, stdout, stderr } = await runNpuc([
        'bundle',
        'litertlm',
        build,
        '--out',
        out,
        '--verify',
        ...prompt,
        '--json',
      ]);
      expect(code, stderr).toBe(0);
      const { ids, native, js } = JSON.parse(stdout).verified;
      expect([native.differing, js.differing]).toEqual([[], []]);
      for (const engine of [[], ['--engine', 'litert-lm']]) {
        const generated = JSON.parse((await runNpuc(['generate', build, ...prompt, ...engine, '--json'])).stdout);
        expect(generated.ids).toEqual(ids);
        expect(generated.engine).toMatch(engine.length > 0 ? /LiteRT of LiteRT-LM/ : /litert\.js/);
      }
    },
    120_000,
  );

  test('--profile litert-lm says what it cannot be', async () => {
    const compile = (...args: string[]) =>
      runNpuc(['compile', demo, '--profile', 'litert-lm', '--out', join(work, 'no'), '--quiet', ...args]);
    const cases: readonly (readonly [readonly string[], RegExp])[] = [
      [['--target', 'onnx'], /add --target tflite/],
      [['--target', 'tflite', '--cache', '64,128'], /--cache takes one size/],
      [['--target', 'tflite', '--io', 'quantized'], /--io quantized has nothing to change/],
    ];
    for (const [args, message] of cases) {
      const { code, stderr } = await compile(...args);
      expect([code, stderr]).toEqual([2, expect.stringMatching(/^CL001 /)]);
      expect(stderr).toMatch(message);
    }
    expect(existsSync(join(work, 'no'))).toBe(false);
  }, 120_000);

  describe('bad input', () => {
    const bundle = (...args: string[]) => runNpuc(['bundle', 'litertlm', ...args, '--quiet']);
    const refusal = async (code: string, args: readonly string[], message: RegExp): Promise<void> => {
      const before = readdirSync(work);
      const outcome = await bundle(...args);
      expect([outcome.code, outcome.stderr.slice(0, 5)], outcome.stderr).toEqual([2, code]);
      expect(outcome.stderr).toMatch(message);
      expect(readdirSync(work)).toEqual(before);
    };

    test('a folder that is none, or is for NPUs', async () => {
      await refusal('TG110', [work, '--out', join(work, 'x.litertlm')], /no compiled model/);
      const other = join(work, 'npu');
      expect((await runNpuc(['compile', demo, ...SMALL, '--scheme', 'fp16', '--out', other])).code).toBe(0);
      await refusal('TF401', [other, '--out', join(work, 'x.litertlm')], /--profile litert-lm/);
    }, 120_000);

    test('an output that is a folder, another file, or nowhere', async () => {
      mkdirSync(join(work, 'folder'));
      writeFileSync(join(work, 'notes.txt'), 'mine');
      await refusal('CL001', [build], /--out is missing/);
      await refusal('CL003', [build, '--out', join(work, 'folder')], /is a folder/);
      await refusal('CL003', [build, '--out', join(work, 'notes.txt')], /--force to replace it/);
      await refusal('IO002', [build, '--out', join(work, 'nowhere', 'x.litertlm')], /there is no folder/);
      expect(readFileSync(join(work, 'notes.txt'), 'utf8')).toBe('mine');
    }, 120_000);

    test('a tokenizer that is missing, broken, unknown, or of another model', async () => {
      const out = ['--out', join(work, 'x.litertlm')];
      const write = (name: string, content: string): string => {
        writeFileSync(join(work, name), content);
        return join(work, name);
      };
      const json = JSON.parse(readFileSync(join(demo, 'tokenizer.json'), 'utf8'));
      await refusal('IO001', [build, ...out, '--tokenizer', join(work, 'no.json')], /cannot read/);
      await refusal('TF402', [build, ...out, '--tokenizer', write('broken.json', '{"model"')], /is no JSON/);
      await refusal('IO003', [build, ...out, '--tokenizer', write('tokenizer.model', 'text')], /./);
      const odd = JSON.stringify({ ...json, decoder: { type: 'Riddle' } });
      await refusal('TF402', [build, ...out, '--tokenizer', write('odd.json', odd)], /Riddle, which LiteRT-LM/);
      json.model.vocab.another = 2048;
      await refusal(
        'TF402',
        [build, ...out, '--tokenizer', write('larger.json', JSON.stringify(json))],
        /model has 2048/,
      );
    }, 120_000);

    test('a file that is no bundle', async () => {
      const check = (path: string) => runNpuc(['bundle', 'check', path]);
      expect((await check(join(work, 'absent.litertlm'))).stderr).toMatch(/^IO001 /);
      writeFileSync(join(work, 'text.litertlm'), 'not one');
      const outcome = await check(join(work, 'text.litertlm'));
      expect([outcome.code, outcome.stderr.slice(0, 5)]).toEqual([2, 'IO003']);
      expect((await runNpuc(['inspect', join(work, 'text.litertlm')])).stderr).toMatch(/^IO003 /);
    }, 120_000);

    test('an engine for a target that is no TFLite', async () => {
      const args = ['generate', build, '--prompt', 'a', '--target', 'onnx', '--engine', 'litert-lm'];
      expect((await runNpuc(args)).stderr).toMatch(/^CL001 --engine litert-lm runs TFLite files/);
    });
  });
});
