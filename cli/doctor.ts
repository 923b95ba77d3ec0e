import { freemem, totalmem } from 'node:os';
import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { installCommand, requireToolchain, type ToolchainStatus, toolchainStatus } from '../targets/qnn/toolchain.ts';
import type { Command } from './commands.ts';
import { formatBytes } from './render-plan.ts';

interface Finding {
  readonly name: string;
  readonly ok: boolean;
  readonly state: string;
  /** What it unlocks, or how to get it. */
  readonly note: string;
}

/** `npuc doctor`: what is on this machine and what each part unlocks. */
export const doctorCommand: Command = {
  command: 'doctor',
  describe: 'say what is on this machine and what each part unlocks',
  builder: (args: Argv) => args.example('$0 doctor', ''),
  run: async (args: { readonly json: boolean }) => {
    const findings = await examine();
    const lines = findings.map(
      ({ name, ok, state, note }) => `${ok ? 'ok  ' : 'no  '} ${name.padEnd(20)} ${state.padEnd(28)} ${note}`,
    );
    process.stdout.write(args.json ? `${JSON.stringify(findings)}\n` : `${lines.join('\n')}\n`);
    return 0;
  },
};

async function examine(): Promise<Finding[]> {
  const findings: Finding[] = [
    { name: 'node', ok: true, state: process.version, note: `${process.platform} ${process.arch}` },
    {
      name: 'memory',
      ok: totalmem() > 4 * 2 ** 30,
      state: `${formatBytes(freemem())} free`,
      note: `of ${formatBytes(totalmem())}; a compile needs about 20 bytes a parameter`,
    },
  ];
  const { pickJavaScriptEngine } = await import('../compiler/runtime/engine.ts');
  const engine = pickJavaScriptEngine();
  findings.push({
    name: 'onnxruntime',
    ok: true,
    state: engine,
    note:
      engine === 'onnxruntime-web'
        ? 'float models and QDQ run; npm install onnxruntime-node makes it faster'
        : 'float models and QDQ run',
  });
  findings.push(await tryLitert());
  for (const status of toolchainStatus()) {
    // A version that nobody asked for is no finding.
    if (status.chosen || status.state === 'installed' || status.state === 'damaged')
      findings.push(await tryToolchain(status));
  }
  return findings;
}

/** The chosen toolchain compiles and simulates one MatMul: that it is there does not say that it works. */
async function tryToolchain(status: ToolchainStatus): Promise<Finding> {
  const { name, version, chosen, state, reason } = status;
  const finding = { name: `toolchain ${name}`, ok: state === 'installed', state: `${state} ${version}` };
  if (state !== 'installed') {
    return { ...finding, note: reason ?? installCommand(name) };
  }
  if (!chosen) return { ...finding, note: `npuc toolchain use ${name} --version ${version} chooses it` };
  if (name === 'litert-lm') return { ...finding, note: 'npuc bundle litertlm --verify runs bundles with it' };
  try {
    if (name === 'litert') return { ...finding, note: await tryPlugins() };
    const { testToolchain } = await import('../targets/qnn/self-test.ts');
    const { decibels, seconds } = await testToolchain(requireToolchain(name, version));
    const figures = `a MatMul compiled and simulated in ${seconds.toFixed(1)} s, ${decibels.toFixed(1)} dB`;
    return { ...finding, note: `HTP binaries are compiled and simulated: ${figures}` };
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return { ...finding, ok: false, note: `${error.code} ${error.message}` };
  }
}

/** What LiteRT's plugins made of one MatMul. @throws what they throw */
async function tryPlugins(): Promise<string> {
  const started = performance.now();
  const { testPlugins } = await import('./jobs/test-plugins.ts');
  const reports = await testPlugins();
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const each = reports.map(({ vendor, runs }) => `${vendor} ${runs[0]!.sqnr.toFixed(1)} dB`);
  return `compile --npu: a MatMul compiled and run in ${seconds} s, ${each.join(', ')} from LiteRT`;
}

async function tryLitert(): Promise<Finding> {
  try {
    const { litertEngineName, createLitertEngine } = await import('../compiler/runtime/litert-engine.ts');
    await createLitertEngine();
    return { name: 'litert', ok: true, state: litertEngineName(), note: 'TFLite files run' };
  } catch (error) {
    const message = error instanceof NpucError ? `${error.code} ${error.message}` : (error as Error).message;
    return { name: 'litert', ok: false, state: 'does not start', note: message };
  }
}
