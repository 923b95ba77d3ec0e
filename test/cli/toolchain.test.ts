import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { runNpuc } from './run-npuc.ts';

describe.skipIf(!toolchain)('doctor and toolchain', () => {
  let cache: string;
  const run = (...args: string[]) => runNpuc(args, { env: { NPUC_CACHE: cache, NPUC_QNN: '' } });
  beforeAll(() => {
    cache = mkdtempSync(join(tmpdir(), 'npuc-cache-'));
    mkdirSync(join(cache, 'toolchains'));
    // What is installed stands in for both versions: only which one is chosen is looked at here.
    for (const version of ['2.7.0', '2.6.0']) symlinkSync(toolchain!.root, join(cache, 'toolchains', `qnn-${version}`));
  });
  afterAll(() => rmSync(cache, { recursive: true, force: true }));

  test('doctor compiles and simulates with the chosen version, and says how well', async () => {
    const { code, stdout } = await run('doctor', '--json');
    expect(code).toBe(0);
    const findings = (JSON.parse(stdout) as { name: string; ok: boolean; state: string; note: string }[]).filter(
      ({ name }) => name === 'toolchain qnn',
    );
    expect(findings.map(({ state }) => state)).toEqual(['installed 2.7.0', 'installed 2.6.0']);
    const [, seconds, decibels] = /simulated in (\d+\.\d) s, (\d+\.\d) dB$/.exec(findings[0]!.note)!;
    expect(Number(seconds)).toBeGreaterThan(0);
    expect(Number(decibels)).toBeGreaterThan(60);
    expect(findings[1]!.note).toMatch(/npuc toolchain use qnn --version 2\.6\.0/);
  });

  test('use moves the star, remove takes the choice with it, a damaged one is no', async () => {
    const star = async () => /^\* {2}qnn {2}(\S+)/m.exec((await run('toolchain', 'list')).stdout)![1];
    expect(await star()).toBe('2.7.0');
    expect((await run('toolchain', 'use', 'qnn', '--version', '2.6.0')).stdout).toMatch(/2\.6\.0 is used/);
    expect(await star()).toBe('2.6.0');
    expect((await run('toolchain', 'remove', 'qnn@2.6.0')).code).toBe(0);
    expect(await star()).toBe('2.7.0');
    const absent = await run('toolchain', 'use', 'qnn@2.6.0');
    expect([absent.code, absent.stderr.slice(0, 5)]).toEqual([2, 'QN001']);
    const unknown = await run('toolchain', 'install', 'qnn', '--version', '1.0.0', '--accept-licence');
    expect([unknown.code, unknown.stderr.slice(0, 5)]).toEqual([2, 'CL001']);
    const broken = join(cache, 'toolchains', 'qnn-2.6.0');
    mkdirSync(broken);
    writeFileSync(join(broken, 'toolchain.json'), '{');
    expect((await run('doctor')).stdout).toMatch(/^no {3}toolchain qnn +damaged 2\.6\.0/m);
  }, 60_000);
});
