// Every vision and audio model of the material, quantized by npuc and by ONNX Runtime's own quantizer on the same samples, both
// executed on the HTP simulator and on ONNX Runtime, against the untouched float model.
// npm run -s build && node bench/onnx-vs-ort.mjs [--python python3] [--scheme w8a8,w8a16] [--soc SM8750] [--write] [--outputs] [model..]
// The peer needs Python with onnxruntime 1.32.0 and onnx 1.20.1; without it the committed figures of the peer are kept.
// --write renews bench/results/onnx-vs-ort.yaml and .md and the table of docs/onnx-models.md; --outputs prints every output.
// --scheme fp16 prints what half floats keep; no peer has them.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { compileOptions } from '../dist/cli/compile.js';
import { mergeConfig } from '../dist/cli/config.js';
import { compileOnnx } from '../dist/cli/jobs/compile-onnx.js';
import { openModel, readBindings } from '../dist/cli/jobs/open-model.js';
import { NpucError } from '../dist/compiler/errors.js';
import { writeOnnx } from '../dist/compiler/export/onnx.js';
import { openOnnx } from '../dist/compiler/import/onnx.js';
import { wasmKernels } from '../dist/compiler/kernels/index.js';
import { runPasses } from '../dist/compiler/pass.js';
import { pickJavaScriptEngine } from '../dist/compiler/runtime/engine.js';
import { openWithJavaScript } from '../dist/compiler/runtime/onnxruntime.js';
import { NativeHost } from '../dist/compiler/runtime/ort-native.js';
import { compareResults, runSamples, worstSqnr } from '../dist/evaluation/compare-runs.js';
import { freezeShapes } from '../dist/passes/freeze-shapes.js';
import { liftOpset } from '../dist/passes/lift-opset.js';
import { simplify } from '../dist/passes/pipelines.js';
import { modelTargets } from '../dist/targets/index.js';
import { compileContext } from '../dist/targets/qnn/compile-context.js';
import { findToolchain } from '../dist/targets/qnn/toolchain.js';
import { findSoc } from '../dist/targets/socs.js';
import { MODELS, material, root, writeNpz } from './material-models.mjs';

const PRESETS = ['default', 'default-per-channel', 'qnn', 'qnn-per-channel'];
/** Beyond this a figure in dB means equality for every purpose. */
const CAP = 140;

const words = process.argv.slice(2);
const option = (name, fallback) => {
  const at = words.indexOf(`--${name}`);
  return at < 0 ? fallback : words.splice(at, 2)[1];
};
const named = option('python', 'python3');
const python = named.includes('/') ? resolve(named) : named;
const schemes = option('scheme', 'w8a8,w8a16').split(',');
const soc = findSoc(option('soc', 'SM8750'));
const [write, showOutputs] = [words.includes('--write'), words.includes('--outputs')];
const names = words.filter((word) => !word.startsWith('--'));
const toolchain = findToolchain('qnn');
if (!toolchain) throw new Error('the QNN toolchain is absent: npuc toolchain install qnn');
const work = mkdtempSync(join(tmpdir(), 'npuc-bench-'));
process.once('exit', () => rmSync(work, { recursive: true, force: true }));

const resultPath = join(root, 'bench', 'results', 'onnx-vs-ort.yaml');
const results = existsSync(resultPath) ? parse(readFileSync(resultPath, 'utf8')) : { models: {} };
const digest = (path) => createHash('sha256').update(readFileSync(path)).digest('hex');
const round = (decibels) => (Number.isNaN(decibels) ? -99 : Math.round(10 * Math.min(CAP, decibels)) / 10);

/** Runs a model and closes it; a refusal or failure of the engine is its first line. */
async function tryRun(open, feeds, outputs) {
  try {
    const runner = await open();
    try {
      return await runSamples(runner, feeds, outputs);
    } finally {
      await runner.close();
    }
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    return error.message;
  }
}

/** A session of the vendor's own library, in a process that ends with it. */
async function openNative(path, options) {
  const host = await NativeHost.start(toolchain);
  try {
    const session = await host.openSession(path, options);
    return {
      run: (feeds, outputs) => session.run(pick(feeds, session.inputs), outputs),
      close: async () => {
        await session.close();
        await host.close();
      },
    };
  } catch (error) {
    await host.close();
    throw error;
  }
}

const pick = (feeds, ports) => Object.fromEntries(ports.map(({ name }) => [name, feeds[name]]));

/** A message on one line, without the paths of this run. */
const shorten = (text) =>
  text
    .replace(/\S*npuc-bench-\w+\//g, '')
    .replace(/\s+/g, ' ')
    .slice(0, 400);

/** Outputs against the float model: dB each, and the task's figure. */
function judge(model, expected, got) {
  if (typeof got === 'string') return { refused: shorten(got) };
  const outputs = compareResults(Object.keys(expected[0]), expected, got, wasmKernels);
  return {
    worst: round(worstSqnr(outputs)),
    outputs: Object.fromEntries(outputs.map(({ name, sqnr }) => [name, round(sqnr)])),
    task: model.task(expected, got),
  };
}

/** The peer's files, executed. */
async function measurePeer(model, folder, samples, expected) {
  const { module } = openModel(join(material, model.path), model.bind);
  const shapes = module.graph().inputs.map((input) => `${input.name}=${input.dims.join('x')}`);
  const source = join(material, model.path);
  const lifted = join(folder, 'lifted.onnx');
  writeLifted(source, readBindings(model.bind), lifted);
  const script = join(root, 'bench', 'ort-quantize.py');
  execFileSync(python, [script, source, lifted, samples.calibrate, folder, ...shapes], {
    cwd: folder, // where its tools leave files of their own
    stdio: ['ignore', 'ignore', 'ignore'],
  });
  const said = JSON.parse(readFileSync(join(folder, 'said.json'), 'utf8'));
  const found = {};
  for (const scheme of schemes) {
    found[scheme] = {};
    for (const preset of PRESETS) {
      const tries = [];
      for (const from of ['untouched', 'lifted']) {
        const key = `${scheme}-${preset}-${from}`;
        if (said[key].error) tries.push({ from, cpu: { refused: said[key].error } });
        else tries.push({ from, ...(await runPeer(model, join(folder, `${key}.onnx`), samples.feeds, expected)) });
      }
      found[scheme][preset] = tries.sort((a, b) => better(figureOf(b)?.worst, figureOf(a)?.worst))[0];
    }
  }
  return found;
}

/** One of the peer's files on both engines. */
async function runPeer(model, path, feeds, expected) {
  const cpu = await tryRun(() => openNative(path, { provider: 'cpu' }), feeds);
  const compile = async () => {
    const options = { soc, share: false, outputFolder: `${path}.htp` };
    const compiled = await compileContext(toolchain, [{ name: 'model', path }], options);
    return await openNative(compiled.files[0].onnx, { provider: 'qnn' });
  };
  const htp = await tryRun(compile, feeds);
  return { cpu: judge(model, expected, cpu), htp: judge(model, expected, htp) };
}

/** The float model frozen, its constants folded, at opset 21, nothing fused: for a peer that does not take the untouched file. */
function writeLifted(source, freeze, path) {
  const module = openOnnx(source);
  runPasses(module, simplify, { untilStable: true });
  runPasses(module, [freezeShapes(freeze)]);
  runPasses(module, simplify, { untilStable: true });
  runPasses(module, [liftOpset(21)]);
  writeOnnx(module, path);
}

/** Ours, through the same function that the command line calls. */
async function measureOurs(model, folder, samples, expected, scheme) {
  const config = mergeConfig(
    {},
    {
      source: join(material, model.path),
      scheme,
      soc: soc.name,
      out: join(folder, `ours-${scheme}`),
      bind: model.bind,
      calibrate: samples.calibrate,
      evaluate: samples.evaluate,
      target: ['onnx', 'qnn'],
    },
  );
  const compile = async (targets) => {
    const options = compileOptions({ ...config, target: targets }, { force: true, quiet: true });
    return await compileOnnx(options, config.bind);
  };
  const started = performance.now();
  let refused;
  const { manifest, report } = await compile(['onnx', 'qnn']).catch((error) => {
    if (!(error instanceof NpucError) || !error.code.startsWith('QN01')) throw error;
    refused = error.message;
    return compile(['onnx']);
  });
  const seconds = (performance.now() - started) / 1000;
  const figures = {};
  for (const [target, engine] of [
    ['onnx', 'cpu'],
    ['qnn', 'htp'],
  ]) {
    const entry = manifest.targets[target];
    if (!entry) {
      figures[engine] = { refused: shorten(refused) };
      continue;
    }
    const open = () => modelTargets[target].open(config.out, entry, { toolchain });
    const got = await tryRun(open, samples.feeds, Object.keys(expected[0]));
    figures[engine] = judge(model, expected, got);
  }
  return { ...figures, remarks: report.remarks, seconds };
}

/** What counts of a run: on HTP where the model is taken, else on ONNX Runtime. */
const figureOf = ({ cpu, htp }) => [htp, cpu].find((figure) => figure?.worst !== undefined);

const better = (a, b) => (a ?? -1000) - (b ?? -1000);

/** The peer's best preset by its worst output. */
function bestOf(presets) {
  const all = Object.entries(presets).flatMap(([preset, run]) => {
    const figure = figureOf(run);
    return figure ? [{ preset, engine: figure === run.htp ? 'HTP' : 'ORT', ...figure }] : [];
  });
  return all.sort((a, b) => better(b.worst, a.worst))[0];
}

for (const name of names.length > 0 ? names : Object.keys(MODELS)) {
  const model = MODELS[name];
  const folder = join(work, name);
  mkdirSync(folder, { recursive: true });
  const samples = { calibrate: join(folder, 'calibrate.npz'), evaluate: join(folder, 'evaluate.npz') };
  writeNpz(samples.calibrate, await model.calibrate());
  samples.feeds = await model.evaluate();
  writeNpz(samples.evaluate, samples.feeds);
  const source = join(material, model.path);
  const expected = await tryRun(() => openWithJavaScript(source, pickJavaScriptEngine()), samples.feeds);
  const entry = {
    file: model.path,
    sha256: digest(source),
    calibrate: digest(samples.calibrate),
    evaluate: digest(samples.evaluate),
    nodes: openModel(source, model.bind).module.graph().nodes.length,
    schemes: {},
  };
  const known = results.models[name];
  // Figures of the peer that were measured on other samples are no peer.
  const before = ['sha256', 'calibrate', 'evaluate'].every((key) => known?.[key] === entry[key]) ? known : undefined;
  let peer;
  if (python !== 'none') peer = await measurePeer(model, folder, samples, expected);
  for (const scheme of schemes) {
    const { seconds, ...ours } = await measureOurs(model, folder, samples, expected, scheme);
    const ort = peer?.[scheme] ?? before?.schemes[scheme]?.ort ?? {};
    entry.schemes[scheme] = { ours, ort };
    const best = bestOf(ort);
    const htp = ours.htp.worst === undefined ? 'not taken' : ours.htp.worst.toFixed(1);
    process.stdout.write(
      `${name} ${scheme}: ours HTP ${htp}, ORT ${ours.cpu.worst}; peer ${best ? `${best.worst} (${best.preset} on ${best.engine})` : '-'}; ${seconds.toFixed(1)} s; ${ours.htp.task ?? ours.htp.refused}; peer ${best?.task}\n`,
    );
    if (showOutputs) {
      for (const output of Object.keys(expected[0]))
        process.stdout.write(
          `    ${output}: HTP ${ours.htp.outputs?.[output]}, ORT ${ours.cpu.outputs[output]}, peer ${best?.outputs[output]}\n`,
        );
      for (const [preset, { cpu, htp }] of Object.entries(ort))
        process.stdout.write(`    ${preset}: ORT ${cpu?.worst ?? cpu?.refused}, HTP ${htp?.worst ?? htp?.refused}\n`);
      process.stdout.write(`    ${ours.remarks.join('\n    ')}\n`);
    }
  }
  for (const [scheme, figures] of Object.entries(before?.schemes ?? {})) entry.schemes[scheme] ??= figures;
  results.models[name] = entry;
  rmSync(folder, { recursive: true, force: true });
  if (write) writeResults();
}

/** After every model: a run that is interrupted has not been for nothing. */
function writeResults() {
  results.soc = soc.name;
  results.versions = { ...toolchain.versions, 'onnx (peer)': '1.20.1' };
  mkdirSync(join(root, 'bench', 'results'), { recursive: true });
  const text = JSON.stringify(results, (_, value) => (typeof value === 'string' ? shorten(value) : value));
  writeFileSync(resultPath, stringify(JSON.parse(text), { lineWidth: 0 }));
  writeFileSync(resultPath.replace('.yaml', '.md'), render(results));
  const page = join(root, 'docs', 'onnx-models.md');
  const marked = /(<!-- table -->\n)[\s\S]*?(<!-- end -->)/;
  writeFileSync(
    page,
    readFileSync(page, 'utf8').replace(marked, (_, head, end) => `${head}${summarize(results)}\n${end}`),
  );
}

/** The short table of the documentation. */
function summarize({ models }) {
  const rows = Object.entries(models).flatMap(([name, { nodes, schemes }]) =>
    Object.entries(schemes).map(([scheme, { ours, ort }]) => {
      const best = bestOf(ort);
      const taken = ours.htp.worst !== undefined;
      const peer = best ? `${best.worst.toFixed(1)} (${best.preset}, ${best.engine})` : 'none runs';
      return `| ${name} | ${scheme} | ${taken ? ours.htp.worst.toFixed(1) : 'refused'} | ${ours.cpu.worst.toFixed(1)} | ${peer} | ${taken ? 'all' : 'not all'} ${nodes} | ${ours.htp.task ?? ours.cpu.task} | ${best?.task ?? ''} |`;
    }),
  );
  return [
    '| model | scheme | HTP dB | ORT dB | best of ONNX Runtime’s own, dB | nodes on HTP | npuc, HTP: task | ONNX Runtime’s own: task |',
    '|---|---|---|---|---|---|---|---|',
    ...rows,
  ].join('\n');
}

/** The table for people. */
function render({ models }) {
  const show = (figure) => (figure?.worst === undefined ? 'refused' : figure.worst.toFixed(1));
  const rows = Object.entries(models).flatMap(([name, { nodes, schemes }]) =>
    Object.entries(schemes).map(([scheme, { ours, ort }]) => {
      const best = bestOf(ort);
      const presets = PRESETS.map((preset) => `${show(ort[preset]?.htp)} / ${show(ort[preset]?.cpu)}`);
      const whole = ours.htp.worst === undefined ? ours.htp.refused : `${nodes} of ${nodes}`;
      const gain = ours.htp.worst === undefined || !best ? '-' : (ours.htp.worst - best.worst).toFixed(1);
      return `| ${name} | ${scheme} | ${show(ours.htp)} / ${show(ours.cpu)} | ${presets.join(' | ')} | ${gain} | ${whole} | ${ours.htp.task ?? '-'} | ${best?.task ?? '-'} |`;
    }),
  );
  return [
    '# npuc and ONNX Runtime’s own quantizer, side by side',
    '',
    'Made by `node bench/onnx-vs-ort.mjs --write` (its head says what it needs); `onnx-vs-ort.yaml` holds every output, every',
    'remark, and the digests of models and samples. dB of the worst output against the untouched float model: HTP simulator / ONNX',
    `Runtime. soc ${soc.name}. The peer is \`quantize_static\` and \`get_qnn_qdq_config\` of ONNX Runtime ${toolchain.versions.onnxruntime}, per tensor and per`,
    'channel, on the same float model and the same samples. "gain" is ours on HTP against the best of the four.',
    '',
    `| model | scheme | npuc | ${PRESETS.join(' | ')} | gain dB | nodes on HTP | npuc: task | best peer: task |`,
    `|${'---|'.repeat(PRESETS.length + 7)}`,
    ...rows,
    '',
  ].join('\n');
}
