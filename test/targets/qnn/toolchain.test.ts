import { execFileSync, spawn } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { cacheFolder } from '../../../compiler/cache.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { checkMadeWith } from '../../../targets/qnn/check-toolchain.ts';
import { compileContext } from '../../../targets/qnn/compile-context.ts';
import { readZipDirectory, unpackZipEntry } from '../../../targets/qnn/read-zip.ts';
import { testToolchain } from '../../../targets/qnn/self-test.ts';
import {
  fetchLicence,
  findToolchain,
  installToolchain,
  removeToolchain,
  requireToolchain,
  type Toolchain,
  toolchainRoot,
  toolchainStatus,
  useToolchain,
} from '../../../targets/qnn/toolchain.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lpbqMatmul, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const WHEELS = [
  { file: 'onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl', project: 'onnxruntime==1.32.0' },
  { file: 'onnxruntime_qnn-2.7.0-cp311-cp311-manylinux_2_35_x86_64.whl', project: 'onnxruntime-qnn==2.7.0' },
];
const real = { platform: process.platform, cache: process.env.NPUC_CACHE };
let folder: string;

function pretendPlatform(platform: string): void {
  Object.defineProperty(process, 'platform', { value: platform });
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
  process.env.NPUC_CACHE = join(folder, 'cache');
});
afterEach(() => {
  pretendPlatform(real.platform);
  if (real.cache === undefined) delete process.env.NPUC_CACHE;
  else process.env.NPUC_CACHE = real.cache;
  rmSync(folder, { recursive: true, force: true });
});

describe('toolchain', () => {
  test('the cache folder follows NPUC_CACHE, XDG_CACHE_HOME, then the home folder', () => {
    expect(cacheFolder()).toBe(join(folder, 'cache'));
    const xdg = process.env.XDG_CACHE_HOME;
    try {
      delete process.env.NPUC_CACHE;
      process.env.XDG_CACHE_HOME = '/some/where';
      expect(cacheFolder()).toBe('/some/where/npuc');
      process.env.XDG_CACHE_HOME = 'relative';
      expect(cacheFolder()).toMatch(/\/\.cache\/npuc$/);
    } finally {
      if (xdg === undefined) delete process.env.XDG_CACHE_HOME;
      else process.env.XDG_CACHE_HOME = xdg;
    }
  });

  test('other hosts get one clear error', async () => {
    pretendPlatform('darwin');
    const refusal = { code: 'QN002', message: expect.stringMatching(/darwin .*linux x64 only/) };
    expect(() => requireToolchain('qnn')).toThrow(expect.objectContaining(refusal));
    await expect(installToolchain('qnn', { acceptLicence: true })).rejects.toMatchObject(refusal);
    expect(findToolchain('qnn')).toBeUndefined();
    expect(toolchainStatus()[0]).toMatchObject({ state: 'host-unsupported' });
    expect(existsSync(join(folder, 'cache'))).toBe(false);
  });
});

// What follows needs a supported host, which the installed toolchain proves.
describe.skipIf(!toolchain)('toolchain on a supported host', () => {
  test('without the licence accepted nothing is downloaded', async () => {
    expect(toolchainStatus().filter(({ name }) => name === 'qnn')).toMatchObject([
      { name: 'qnn', version: '2.7.0', state: 'absent', chosen: true },
      { name: 'qnn', version: '2.6.0', state: 'absent', chosen: false },
    ]);
    expect(() => requireToolchain('qnn')).toThrow(expect.objectContaining({ code: 'QN001' }));
    await expect(installToolchain('qnn', { acceptLicence: false })).rejects.toMatchObject({
      code: 'QN003',
      hint: expect.stringMatching(/--accept-licence.*Qualcomm_LICENSE\.pdf/s),
    });
    expect(existsSync(join(folder, 'cache'))).toBe(false);
  });

  test('what is open source asks for no acceptance and has no licence to fetch', async () => {
    const wheels = join(folder, 'wheels');
    mkdirSync(wheels);
    await expect(installToolchain('litert-lm', { acceptLicence: false, wheels })).rejects.toMatchObject({
      code: 'QN004',
      hint: expect.stringMatching(/pip download .*litert-lm-api==0\.18\.1/),
    });
    await expect(fetchLicence('litert-lm')).rejects.toMatchObject({ code: 'CL001' });
    expect(() => requireToolchain('litert-lm')).toThrow(
      expect.objectContaining({ code: 'QN001', hint: 'npuc toolchain install litert-lm' }),
    );
  });

  test('a missing wheel, a wrong wheel, and no pip are told apart and leave nothing installed', async () => {
    const wheels = join(folder, 'wheels');
    mkdirSync(wheels);
    const install = () => installToolchain('qnn', { acceptLicence: true, wheels });
    await expect(install()).rejects.toMatchObject({
      code: 'QN004',
      hint: expect.stringMatching(/pip download .*onnxruntime==1\.32\.0/),
    });
    writeFileSync(join(wheels, WHEELS[0]!.file), 'another file');
    await expect(install()).rejects.toMatchObject({
      code: 'QN005',
      message: expect.stringMatching(/has SHA-256 [0-9a-f]{64}/),
    });
    process.env.NPUC_PYTHON = join(folder, 'no-python');
    try {
      await expect(installToolchain('qnn', { acceptLicence: true })).rejects.toMatchObject({
        code: 'QN004',
        message: expect.stringMatching(/no Python with pip/),
      });
    } finally {
      delete process.env.NPUC_PYTHON;
    }
    expect(readdirSync(join(folder, 'cache', 'toolchains'))).toEqual([]);
    expect(findToolchain('qnn')).toBeUndefined();
  });

  test("pip's own configuration chooses the index, and its wheel is still checked", async () => {
    const wheels = join(folder, 'index');
    mkdirSync(wheels);
    const make = `import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w')
info = 'onnxruntime-1.32.0.dist-info/'
z.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: onnxruntime\\nVersion: 1.32.0\\n')
z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nTag: cp311-cp311-manylinux_2_28_x86_64\\n')
z.writestr(info + 'RECORD', '')
z.close()`;
    execFileSync('python3', ['-c', make, join(wheels, WHEELS[0]!.file)]);
    const install = () => installToolchain('qnn', { acceptLicence: true });
    vi.stubEnv('PIP_NO_INDEX', '1');
    vi.stubEnv('PIP_FIND_LINKS', wheels);
    try {
      await expect(install()).rejects.toMatchObject({ code: 'QN005', message: expect.stringMatching(/has SHA-256/) });
      rmSync(join(wheels, WHEELS[0]!.file));
      await expect(install()).rejects.toMatchObject({
        code: 'QN004',
        message: expect.stringMatching(/No matching distribution found for onnxruntime==1\.32\.0/),
      });
    } finally {
      vi.unstubAllEnvs();
    }
    expect(readdirSync(join(folder, 'cache', 'toolchains'))).toEqual([]);
  });

  test('a cache that cannot be a folder is an error of the cache', async () => {
    writeFileSync(join(folder, 'cache'), '');
    await expect(installToolchain('qnn', { acceptLicence: true })).rejects.toMatchObject({ code: 'IO002' });
  });

  test('three installs at once over damaged wheels and a damaged install all end well', async () => {
    const wheels = join(folder, 'wheels');
    for (const { file, project } of WHEELS) {
      const platform = /manylinux_\d+_\d+_x86_64/.exec(file)![0];
      const tags = ['--python-version', '3.11', '--implementation', 'cp', '--abi', 'cp311', '--platform', platform];
      const pip = [
        '-m',
        'pip',
        'download',
        '-q',
        '--no-deps',
        '--only-binary=:all:',
        ...tags,
        '--dest',
        wheels,
        project,
      ];
      execFileSync(process.env.NPUC_PYTHON ?? 'python3', pip);
      expect(existsSync(join(wheels, file))).toBe(true);
    }
    const toolchains = join(folder, 'cache', 'toolchains');
    mkdirSync(toolchains, { recursive: true });
    writeFileSync(join(toolchains, WHEELS[0]!.file), 'cut off by a crash');
    copyFileSync(join(wheels, WHEELS[1]!.file), join(toolchains, WHEELS[1]!.file));

    expect(await fetchLicence('qnn', { wheels })).toMatch(/qnn-2\.7\.0-Qualcomm_LICENSE\.pdf$/);
    let root = dirname(fileURLToPath(import.meta.url));
    while (!existsSync(join(root, 'package.json'))) root = dirname(root);
    const script = `
      import { installToolchain } from ${JSON.stringify(join(root, 'dist/targets/qnn/toolchain.js'))};
      const { root } = await installToolchain('qnn', { acceptLicence: true, wheels: ${JSON.stringify(wheels)} });
      console.log(root);`;
    const run = () =>
      new Promise<string>((done) => {
        const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
          stdio: ['ignore', 'pipe', 'pipe'],
        });
        let output = '';
        for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += String(text)));
        child.once('close', () => done(output.trim()));
      });
    const rounds = 3;
    for (let round = 0; round < rounds; round++) {
      // Each round starts from another kind of damage that all of them see at once.
      for (const { file } of WHEELS) writeFileSync(join(toolchains, file), 'cut off by a crash');
      if (round > 0) truncateSync(join(toolchainRoot('qnn'), 'toolchain.json'), 5);
      const roots = await Promise.all([run(), run(), run()]);
      expect(roots).toEqual([toolchainRoot('qnn'), toolchainRoot('qnn'), toolchainRoot('qnn')]);
      expect(findToolchain('qnn')).toBeDefined();
    }
    expect(readdirSync(toolchains).filter((name) => name.includes('partial'))).toEqual([]);

    const installed = requireToolchain('qnn');
    expect(existsSync(installed.licenceFile)).toBe(true);
    expect(existsSync(join(installed.qnnLibraryFolder, 'libQnnHtp.so'))).toBe(true);
    expect(await fetchLicence('qnn')).toBe(installed.licenceFile);
    const stages: string[] = [];
    await installToolchain('qnn', { acceptLicence: true, progress: (event) => stages.push(event.stage) });
    expect(stages).toEqual([]);

    truncateSync(installed.onnxruntimeLibrary, 1000);
    expect(findToolchain('qnn')).toBeUndefined();
    expect(toolchainStatus()[0]).toMatchObject({ state: 'damaged', reason: expect.stringMatching(/libonnxruntime/) });
    expect(() => requireToolchain('qnn')).toThrow(expect.objectContaining({ code: 'QN006' }));
    await installToolchain('qnn', { acceptLicence: true, wheels });
    expect(findToolchain('qnn')?.root).toBe(toolchainRoot('qnn'));
  }, 180_000);
});

describe.skipIf(!toolchain)('two versions side by side', () => {
  /** Puts what is installed into the test's own cache. */
  const linkInstalled = () => {
    mkdirSync(join(folder, 'cache', 'toolchains'), { recursive: true });
    symlinkSync(toolchain!.root, toolchainRoot('qnn', toolchain!.version));
  };
  const chosen = () => toolchainStatus().find((status) => status.chosen)!.version;
  afterEach(() => {
    delete process.env.NPUC_QNN;
  });

  test('the environment is over the choice, the choice over the newest, and only what is installed can be chosen', () => {
    linkInstalled();
    expect(chosen()).toBe('2.7.0');
    expect(() => useToolchain('qnn', '2.6.0')).toThrow(
      expect.objectContaining({ code: 'QN001', hint: 'npuc toolchain install qnn --version 2.6.0 --accept-licence' }),
    );
    process.env.NPUC_QNN = '2.6.0';
    expect(chosen()).toBe('2.6.0');
    expect(findToolchain('qnn')).toBeUndefined();
    expect(findToolchain('qnn', '2.7.0')?.version).toBe('2.7.0');
    process.env.NPUC_QNN = '1.0.0';
    expect(() => findToolchain('qnn')).toThrow(
      expect.objectContaining({ code: 'CL001', hint: 'known are 2.7.0 and 2.6.0' }),
    );
    delete process.env.NPUC_QNN;
    // An older one that is there is taken before a newer one that is not.
    const older = toolchainRoot('qnn', '2.6.0');
    renameSync(toolchainRoot('qnn', '2.7.0'), older);
    expect(chosen()).toBe('2.6.0');
    useToolchain('qnn', '2.6.0');
    linkInstalled();
    expect(chosen()).toBe('2.6.0');
    useToolchain('qnn', '2.7.0');
    expect(chosen()).toBe('2.7.0');
    removeToolchain('qnn', '2.7.0');
    expect(chosen()).toBe('2.6.0');
    expect(existsSync(toolchain!.licenceFile)).toBe(true);
  });

  test('the second version installs beside the first, compiles, and does not take what the first made', async () => {
    linkInstalled();
    const older = await installToolchain('qnn', { acceptLicence: true, version: '2.6.0' });
    expect(older).toMatchObject({ version: '2.6.0', root: toolchainRoot('qnn', '2.6.0') });
    expect(chosen()).toBe('2.7.0');
    const compile = (by: Toolchain) =>
      compileContext(by, [{ name: 'one', path: writeModel(join(folder, 'one.onnx'), lpbqMatmul(1)) }], {
        soc: findSoc('SM8750'),
        share: false,
        outputFolder: join(folder, by.version),
      });
    const newest = requireToolchain('qnn');
    const [a, b] = [await compile(older), await compile(newest)];
    const builds = [a, b].map(({ contexts }) => [...contexts.values()][0]!.buildId);
    expect(builds.map((build) => build.replace(/\.\d{9,}$/, ''))).toEqual(
      [older, newest].map(({ versions }) => `v${versions.qairt}`),
    );
    expect((await testToolchain(older)).decibels).toBeGreaterThan(60);

    expect(checkMadeWith(newest.versions, newest, 'build')).toBeUndefined();
    expect(checkMadeWith({}, newest, 'build')).toBeUndefined();
    expect(checkMadeWith(older.versions, newest, 'build')).toMatch(/QAIRT 2\.50\.40 .*run with 2\.51\.0/);
    expect(() => checkMadeWith(newest.versions, older, 'build')).toThrow(
      expect.objectContaining({ code: 'QN015', hint: expect.stringContaining('NPUC_QNN=2.7.0') }),
    );
    // What the check says is what the libraries do.
    for (const [by, { files }, loads] of [
      [newest, a, true],
      [older, b, false],
    ] as const) {
      const host = await NativeHost.start(by);
      const opening = host.openSession(files[0]!.onnx, { provider: 'qnn' });
      if (loads) await opening;
      else
        await expect(opening).rejects.toMatchObject({ code: 'RT110', hint: expect.stringMatching(/newer.*QNN 5000/) });
      await host.close();
    }
  }, 180_000);
});

test.skipIf(!toolchain)('the self-test compiles, simulates and measures', async () => {
  const { decibels, seconds } = await testToolchain(toolchain!);
  expect(decibels).toBeGreaterThan(60);
  expect(decibels).toBeLessThan(200);
  expect(seconds).toBeGreaterThan(0.1);
});

describe('reading zip archives', () => {
  test('damaged archives and entries are refused', async () => {
    const zip = join(folder, 'a.zip');
    const make =
      "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED); z.writestr('a/b.txt', 'hello ' * 1000); z.writestr('c', 'x'); z.close()";
    execFileSync('python3', ['-c', make, zip]);
    const entries = readZipDirectory(zip);
    expect(entries.map((entry) => [entry.name, entry.size])).toEqual([
      ['a/b.txt', 6000],
      ['c', 1],
    ]);
    await unpackZipEntry(zip, entries[0]!, join(folder, 'b.txt'));
    await expect(unpackZipEntry(zip, { ...entries[0]!, crc: 1 }, join(folder, 'b2.txt'))).rejects.toMatchObject({
      code: 'IO003',
    });
    await expect(unpackZipEntry(zip, { ...entries[0]!, method: 14 }, join(folder, 'b3.txt'))).rejects.toMatchObject({
      code: 'IO003',
    });
    await expect(
      unpackZipEntry(zip, { ...entries[0]!, headerOffset: 5 }, join(folder, 'b4.txt')),
    ).rejects.toMatchObject({ code: 'IO003' });
    await expect(
      unpackZipEntry(zip, { ...entries[0]!, compressedSize: 10 }, join(folder, 'b5.txt')),
    ).rejects.toMatchObject({ code: 'IO003' });
    truncateSync(zip, 100);
    expect(() => readZipDirectory(zip)).toThrow(expect.objectContaining({ code: 'IO003' }));
  });
});
