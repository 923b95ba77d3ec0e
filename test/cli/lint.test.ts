import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LintResult } from '../../cli/jobs/lint-model.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';
import { findDifference, randomFeeds } from '../../compiler/pass-values.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { demo, type Outcome, runNpuc } from './run-npuc.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-lint-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

function writeModel(name: string, body: string, opset = 21): string {
  const module = parseModule(`npuir 1\nopset ${opset}\ngraph @g\n${body.trim().replace(/^/gm, '  ')}\n`);
  inferShapes(module);
  const path = join(work, name);
  writeOnnx(module, path);
  return path;
}

const inspect = async (path: string, ...args: string[]): Promise<Outcome> => await runNpuc(['inspect', path, ...args]);
const parse = (outcome: Outcome): LintResult => JSON.parse(outcome.stdout) as LintResult;

const MENDABLE = `
in %x : f32[1,4,8,8]
%s : f32[4] = const [1.0, 1.0, 0.5, 0.5]
%r = Resize(%x, _, %s) {mode "nearest"}  ; from shrink
%a = Celu(%r)  ; from act_1
%b = Celu(%a)  ; from act_2
%axes : i64[1] = const [1]
%l = ReduceL1(%b, %axes)  ; from sum
%k : f32[] = const 1.0
%p = Add(%l, %k)
%y = Log(%p)  ; from log
out %y`;

describe('a model with forms that HTP does not take', () => {
  test('has its nodes grouped by reason, with what mends each, and exit code 0', async () => {
    const outcome = await inspect(writeModel('mendable.onnx', MENDABLE), '--soc', 'SM8650');
    expect(outcome.stderr).toBe('');
    expect(outcome.code).toBe(0);
    expect(outcome.stdout).toMatch(/^mendable\.onnx on SM8650 \(HTP v75\) at w8a16: \d+ nodes, 4 findings$/m);
    expect(outcome.stdout).toMatch(
      /^HTP002 refused: HTP has no Celu .*\n {2}mended by decompose-activations.*\n {2}Celu: \S+, \S+$/m,
    );
    expect(outcome.stdout).toMatch(/^HTP012 wrong: .*\n {2}mended by decompose-nearest-resize/m);
    expect(outcome.stdout).toMatch(/^HTP013 wrong: .*\n {2}mended when quantized: 8 bits/m);
    expect(outcome.stdout).toMatch(/everything is mended, or can be$/m);
  });

  test('is judged by the widths of the scheme', async () => {
    const path = writeModel(
      'widths.onnx',
      'in %x : f32[1,64]\n%axis : i64[] = const 1\n%y = CumSum(%x, %axis)\nout %y',
    );
    const codes = async (scheme: string): Promise<string[]> =>
      parse(await inspect(path, '--soc', 'SM8650', '--scheme', scheme, '--json')).findings.map(({ code }) => code);
    expect(await codes('w8a8')).toEqual(['HTP014']);
    expect(await codes('w8a16')).toEqual([]);
  });

  test('is repaired by --fix: the same function, and nothing left but what quantization does', async () => {
    const source = writeModel('broken.onnx', MENDABLE);
    const fixed = join(work, 'fixed.onnx');
    const outcome = await inspect(source, '--soc', 'SM8650', '--fix', '--out', fixed, '--json');
    expect(outcome.code, outcome.stderr).toBe(0);
    const result = parse(outcome);
    expect(result.fixed!.passes).toEqual(['decompose-activations', 'decompose-reductions', 'decompose-nearest-resize']);
    expect(result.fixed!.left.map(({ code }) => code)).toEqual(['HTP013']);
    const [before, after] = [openOnnx(source), openOnnx(fixed)];
    const feeds = randomFeeds(before.graph());
    const [wanted, found] = await Promise.all(
      [before, after].map(async (module) => {
        const runner = await openModule(module);
        const results = await runner.run(feeds);
        await runner.close();
        return results;
      }),
    );
    expect(findDifference(wanted!.y!, found!.y!, 1e-5)).toBeUndefined();
  });

  test('that nothing mends has exit code 1, and its reason', async () => {
    const path = writeModel('hardmax.onnx', 'in %x : f32[1,8]\n%y = Hardmax(%x)\nout %y');
    const outcome = await inspect(path, '--soc', '8 Gen 3', '--json');
    expect(outcome.code).toBe(1);
    expect(parse(outcome)).toMatchObject({
      fatal: ['HTP002'],
      findings: [{ verdict: 'refused', nodes: [{ op: 'Hardmax' }] }],
    });
  });

  test('whose rewrite does not fit has exit code 1 too', async () => {
    const body = 'in %a : f32[3,3]\nin %b : f32[3,3]\n%y = Einsum(%a, %b) {equation "ii,ij->j"}\nout %y';
    const outcome = await inspect(writeModel('diagonal.onnx', body), '--soc', 'SM8650', '--json');
    expect(outcome.code).toBe(1);
    expect(parse(outcome).fatal).toEqual(['HTP022']);
  });

  test('of another domain is refused by its name, but for what the plugin knows', async () => {
    const body = `in %x : f32[1,8,16]
%a : f32[1,8,16] = com.microsoft::QuickGelu(%x)
%y : f32[1,8,16] = com.microsoft::FastGelu(%a)
out %y`;
    const module = parseModule(`npuir 1\nopset 21\nopset com.microsoft 1\ngraph @g\n${body.replace(/^/gm, '  ')}\n`);
    const path = join(work, 'contrib.onnx');
    writeOnnx(module, path);
    const result = parse(await inspect(path, '--soc', 'SM8650', '--json'));
    expect(result.findings.map(({ reason }) => reason)).toEqual(['HTP has no com.microsoft::FastGelu']);
  });

  test('in half floats is refused where there are none', async () => {
    const path = writeModel('halves.onnx', 'in %x : f32[1,8]\n%y = Relu(%x)\nout %y');
    const result = parse(await inspect(path, '--soc', 'SM8350', '--scheme', 'fp16', '--json'));
    expect(result.findings).toMatchObject([{ code: 'HTP005', mend: { flag: '--scheme w8a16' } }]);
  });
});

describe.skipIf(!toolchain)("the vendor's validator", { timeout: 60_000 }, () => {
  test('is asked about the graph as compile hands it over', async () => {
    const path = writeModel('asked.onnx', MENDABLE);
    const outcome = await inspect(path, '--soc', 'SM8650', '--with-toolchain', '--json');
    expect(outcome.code, outcome.stderr).toBe(0);
    expect(parse(outcome).vendor).toMatchObject({ refusals: [], errors: [], contradicts: [] });
  });

  test('names what it refuses', async () => {
    const path = writeModel('refused.onnx', 'in %x : f32[1,8]\n%y = Hardmax(%x)  ; from choose\nout %y');
    const outcome = await inspect(path, '--soc', 'SM8650', '--with-toolchain', '--json');
    expect(outcome.code).toBe(1);
    expect(parse(outcome).vendor!.refusals).toMatchObject([{ node: { op: 'Hardmax' } }]);
  });
});

test.skipIf(!toolchain)('what compile makes of it has nothing against it', { timeout: 60_000 }, async () => {
  const out = join(work, 'build');
  const compiled = await runNpuc([
    'compile',
    writeModel('c.onnx', MENDABLE),
    '--soc',
    'SM8650',
    '--target',
    'qnn',
    '--out',
    out,
  ]);
  expect(compiled.code, compiled.stderr).toBe(0);
  const outcome = await inspect(out, '--soc', 'SM8650', '--json');
  expect(outcome.code, outcome.stderr).toBe(0);
  expect(parse(outcome)).toMatchObject({ findings: [], fatal: [] });
  expect(parse(outcome).nodes).toBeGreaterThan(5);
});

test('a folder without QDQ models is refused', async () => {
  mkdirSync(join(work, 'other'));
  writeFileSync(join(work, 'other', 'manifest.json'), '{"npuc": "0.0.1"}');
  const outcome = await inspect(join(work, 'other'), '--soc', 'SM8650');
  expect(outcome.stderr).toMatch(/^TG110 /);
  expect(outcome.code).toBe(2);
});

describe('an old SoC', () => {
  const product =
    'in %a : f32[1,4,8,16] q(u16, scale 0.00006, zero 32768)\nin %b : f32[1,4,16,8] q(u16, scale 0.00006, zero 32768)\n%y : f32[1,4,8,8] q(u16, scale 0.0006, zero 32768) = MatMul(%a, %b)\nout %y';
  test('has no form for a product of two 16-bit values, and the rewrite of others does not hide that', async () => {
    const path = writeModel('product.onnx', product);
    const modern = parse(await inspect(path, '--soc', 'SM8650', '--json'));
    expect([modern.findings.map(({ code }) => code), modern.fatal]).toEqual([['HTP030'], []]);
    const old = await inspect(path, '--soc', 'SM8450', '--json');
    expect(old.code).toBe(1);
    expect(parse(old).fatal).toEqual(['HTP032']);
  });
});

describe('a checkpoint', () => {
  test('has nothing against it on a SoC of today', async () => {
    const outcome = await inspect(demo, '--soc', 'SM8750', '--scheme', 'w4a16', '--json');
    expect(outcome.code, outcome.stderr).toBe(0);
    expect(parse(outcome).findings).toEqual([]);
  });

  test('is mended by flags on an old one', async () => {
    const result = parse(await inspect(demo, '--soc', 'SM8350', '--scheme', 'w4a16', '--json'));
    expect(result.findings.map(({ code, mend }) => [code, mend?.kind])).toEqual([
      ['HTP040', 'flag'],
      ['HTP041', 'flag'],
    ]);
    expect(result.fatal).toEqual([]);
  });
});

describe('bad input gives one coded error and exit code 2', () => {
  const plain = 'in %x : f32[1,8]\n%y = Relu(%x)\nout %y';
  test.each([
    ['an unknown SoC', ['--soc', 'SM8651'], /^TG001 .*SM8651/],
    ['an unknown scheme', ['--soc', 'SM8650', '--scheme', 'w2a2'], /^CL001 .*w2a2/],
    ['--fix without --out', ['--soc', 'SM8650', '--fix'], /^CL001 --fix and --out/],
    ['--scheme without --soc', ['--scheme', 'w8a8'], /^CL001 --scheme needs --soc/],
    ['--text with --soc', ['--soc', 'SM8650', '--text'], /^CL001 --text/],
  ])('%s', async (_, args, message) => {
    const before = readdirSync(work);
    const outcome = await inspect(writeModel('plain.onnx', plain), ...args);
    expect(outcome.stderr).toMatch(message);
    expect(outcome.code).toBe(2);
    expect(readdirSync(work).filter((name) => !before.includes(name) && name !== 'plain.onnx')).toEqual([]);
  });

  test('a file that is there already is not written over', async () => {
    const path = writeModel('there.onnx', plain);
    const outcome = await inspect(path, '--soc', 'SM8650', '--fix', '--out', path);
    expect(outcome.stderr).toMatch(/^CL001 .*there already/);
    expect(existsSync(path)).toBe(true);
  });

  test('--fix of a checkpoint', async () => {
    const outcome = await inspect(demo, '--soc', 'SM8650', '--fix', '--out', join(work, 'never.onnx'));
    expect(outcome.stderr).toMatch(/^CL001 --fix rewrites ONNX models/);
    expect(existsSync(join(work, 'never.onnx'))).toBe(false);
  });

  test('a shape that is not bound', async () => {
    const outcome = await inspect(
      writeModel('open.onnx', 'in %x : f32[n,8]\n%y = Relu(%x)\nout %y'),
      '--soc',
      'SM8650',
    );
    expect(outcome.stderr).toMatch(/^PS110 /);
    expect(outcome.code).toBe(2);
  });
});
