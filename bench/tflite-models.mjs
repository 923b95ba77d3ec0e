// The material's ONNX models as TFLite: operators, transposes, time, and how far LiteRT's outputs are from the float model's.
//
//     npm run -s build && node bench/tflite-models.mjs [--model name] [--write] [--onnx2tf <python with onnx2tf 1.29.24>]
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { quantizeGraph } from '../dist/calibration/quantize-graph.js';
import { litertFormat, makeRecipe } from '../dist/calibration/recipe.js';
import { openModel } from '../dist/cli/jobs/open-model.js';
import { cloneModule } from '../dist/compiler/ir/clone.js';
import { wasmKernels } from '../dist/compiler/kernels/index.js';
import { openModule } from '../dist/compiler/runtime/engine.js';
import { loadLitert, openLitert } from '../dist/compiler/runtime/litert.js';
import { compareResults, runSamples } from '../dist/evaluation/compare-runs.js';
import { findSoc } from '../dist/targets/socs.js';
import { lowerModel } from '../dist/targets/tflite/graph/lower-model.js';
import { readTflite } from '../dist/targets/tflite/read.js';
import { operatorName } from '../dist/targets/tflite/schema-enums.js';
import { tfliteModelTarget } from '../dist/targets/tflite/tflite-model.js';
import { encodeTflite } from '../dist/targets/tflite/write.js';
import { MODELS, material, root } from './material-models.mjs';

const flag = (name) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? undefined : process.argv[at + 1];
};

const soc = findSoc('SM8750');

/** A module of its own, lowered for a scheme. */
function lowered(module, scheme) {
  const copy = cloneModule(module);
  tfliteModelTarget.lower(copy, soc, makeRecipe(scheme));
  return copy;
}

async function runFile(bytes, name, feeds) {
  const runner = await openLitert(bytes, name);
  try {
    return await runSamples(runner, feeds);
  } finally {
    await runner.close();
  }
}

async function runModule(module, feeds) {
  const runner = await openModule(cloneModule(module));
  try {
    return await runSamples(runner, feeds);
  } finally {
    await runner.close();
  }
}

/** The largest difference over the largest magnitude of an output. */
function relative(wanted, got) {
  let worst = 0;
  wanted.forEach((outputs, sample) => {
    for (const [name, { data }] of Object.entries(outputs)) {
      const other = got[sample][name].data;
      const most = data.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-30);
      data.forEach((value, i) => {
        worst = Math.max(worst, Math.abs(value - other[i]) / most);
      });
    }
  });
  return worst;
}

const sqnr = (names, wanted, got) =>
  Math.min(...compareResults(names, wanted, got, wasmKernels).map((each) => each.sqnr));

async function measure(name) {
  const { path, bind, calibrate, evaluate } = MODELS[name];
  const started = performance.now();
  const { module } = openModel(join(material, path), bind);
  const float = lowerModel(lowered(module, 'fp16').graph(), 'float');
  const bytes = encodeTflite(float.model);
  const milliseconds = performance.now() - started;
  const [samples, held] = [await calibrate(), await evaluate()];
  const wanted = await runModule(module, held);
  const graph = module.graph();
  const names = graph.outputs.map((value) => value.name);
  const row = {
    name,
    operators: float.operators,
    transposes: float.transposes,
    milliseconds,
    error: relative(wanted, await runFile(bytes, graph.name, held)),
  };
  for (const scheme of ['w8a8', 'w8a16']) {
    const quantized = await quantizeGraph({
      module: lowered(module, scheme),
      feeds: samples,
      recipe: makeRecipe(scheme),
      format: litertFormat,
      kernels: wasmKernels,
    });
    const result = lowerModel(quantized.module.graph(), 'float');
    const got = await runFile(encodeTflite(result.model), graph.name, held);
    row[scheme] = {
      dB: sqnr(names, wanted, got),
      twin: sqnr(names, await runModule(quantized.module, held), got),
      operators: result.operators,
      floats: [...result.floats.values()].reduce((sum, nodes) => sum + nodes.length, 0),
    };
  }
  const python = flag('onnx2tf');
  if (python) row.onnx2tf = await measureOnnx2tf(python, name, samples, held, wanted, names);
  return row;
}

/** Channels last: onnx2tf moves the channels of inputs of three and more axes, and of outputs, behind the others. */
function channelsLast({ dtype, shape, data }) {
  if (shape.length < 3) return { dtype, shape, data };
  const [batch, channels, ...spatial] = shape;
  const area = spatial.reduce((a, b) => a * b, 1);
  const moved = new data.constructor(data.length);
  for (let n = 0; n < batch; n++)
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < area; i++) moved[(n * area + i) * channels + c] = data[(n * channels + c) * area + i];
  return { dtype, shape: [batch, ...spatial, channels], data: moved };
}

/** The same elements in any order of axes: which one onnx2tf gave is found by comparing with the wanted ones. */
function matchLayout(wanted, got) {
  const last = channelsLast(wanted);
  if (String(got.shape) === String(last.shape) && String(got.shape) !== String(wanted.shape)) return last;
  return wanted;
}

async function measureOnnx2tf(python, name, samples, held, wanted, names) {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-onnx2tf-'));
  try {
    const { path, bind } = MODELS[name];
    const inputs = Object.entries(held[0]).filter(([, tensor]) => tensor.dtype === 'f32');
    // One file of samples an input, channels last, as -cind wants them.
    for (const [input] of inputs) {
      const all = samples.map((feed) => channelsLast(feed[input]));
      const data = Float32Array.from(all.flatMap((tensor) => [...tensor.data]));
      writeFileSync(join(folder, `${inputs.findIndex(([each]) => each === input)}.f32`), Buffer.from(data.buffer));
    }
    writeFileSync(
      join(folder, 'job.json'),
      JSON.stringify({
        model: join(material, path),
        bind,
        inputs: inputs.map(([input, tensor]) => ({
          name: input,
          shape: [samples.length, ...channelsLast(tensor).shape.slice(1)],
        })),
      }),
    );
    const report = JSON.parse(
      execFileSync(python, [join(root, 'bench', 'onnx2tf-convert.py'), folder], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
        maxBuffer: 1 << 28,
        timeout: 600_000,
      })
        .trim()
        .split('\n')
        .at(-1),
    );
    if (report.error) return { error: report.error };
    const row = { seconds: report.seconds };
    for (const [kind, file] of [
      ['float', report.float],
      ['int8', report.int8],
    ]) {
      if (!file || !existsSync(file)) continue;
      const bytes = new Uint8Array(readFileSync(file));
      const codes = readTflite(bytes).subgraphs[0].operators.map(({ code }) => operatorName(code));
      row[kind] = {
        operators: codes.length,
        transposes: codes.filter((code) => code === 'TRANSPOSE').length,
        ...(await runTheirs(bytes, held, wanted, names)),
      };
    }
    return row;
  } catch (error) {
    // The command line that failed names folders of this machine.
    return {
      error: error.status === undefined ? String(error.message).split('\n')[0].slice(0, 100) : 'its process died',
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function runTheirs(bytes, held, wanted, names) {
  let model;
  try {
    model = await loadLitert(bytes);
    const [signature] = Object.values(model.signatures);
    const results = [];
    const turned = [];
    for (const [sample, feed] of held.entries()) {
      const given = Object.values(feed).map(channelsLast);
      const feeds = Object.fromEntries(
        signature.inputs.map((port, i) => {
          const fits = given.find((tensor) => tensor.data.length === port.shape.reduce((a, b) => a * Math.abs(b), 1));
          return [port.name, { ...(fits ?? given[i]), shape: port.shape.map(Math.abs) }];
        }),
      );
      const outputs = Object.values(await signature.run(feeds));
      const left = [...outputs];
      const matched = {};
      const asWanted = {};
      for (const name of names) {
        const want = wanted[sample][name];
        const candidates = left.filter(({ data }) => data.length === want.data.length);
        const best = candidates
          .map((got) => ({ got, want: matchLayout(want, got) }))
          .sort((a, b) => distance(a) - distance(b))[0];
        if (!best) throw new Error(`no output fits ${name}`);
        left.splice(left.indexOf(best.got), 1);
        matched[name] = { dtype: 'f32', shape: best.want.shape, data: best.got.data };
        asWanted[name] = best.want;
      }
      results.push(matched);
      turned.push(asWanted);
    }
    return { error: relative(turned, results), dB: sqnr(names, turned, results) };
  } catch (error) {
    return { failure: String(error.message).split('\n')[0].slice(0, 80) };
  } finally {
    model?.dispose();
  }
}

const distance = ({ got, want }) => got.data.reduce((sum, value, i) => sum + (value - want.data[i]) ** 2, 0);

const dB = (value) => (value === Number.POSITIVE_INFINITY ? 'exact' : value.toFixed(1));

function renderOwn(rows) {
  return [
    '| model | operators | transposes | to TFLite, ms | float: largest error | w8a8 dB | w8a16 dB | LiteRT against QDQ, w8a8 / w8a16 dB | on floats, w8a8 / w8a16 |',
    '|---|---|---|---|---|---|---|---|---|',
    ...rows.map(
      ({ name, operators, transposes, milliseconds, error, w8a8, w8a16 }) =>
        `| ${name} | ${operators} | ${transposes} | ${milliseconds.toFixed(0)} | ${error.toExponential(1)} | ${dB(w8a8.dB)} | ${dB(w8a16.dB)} | ${dB(w8a8.twin)} / ${dB(w8a16.twin)} | ${w8a8.floats} / ${w8a16.floats} |`,
    ),
  ].join('\n');
}

function renderBoth(rows) {
  const show = (kind) => {
    if (!kind) return ['-', '-', '-'];
    const { operators, transposes, dB: level, failure } = kind;
    return [operators, transposes, failure ? failure : dB(level)];
  };
  return [
    '| model | operators: npuc / onnx2tf | transposes | conversion: npuc, onnx2tf | ratio | float error: npuc / onnx2tf | int8 dB: npuc / onnx2tf |',
    '|---|---|---|---|---|---|---|',
    ...rows.map(({ name, operators, transposes, milliseconds, error, w8a8, onnx2tf: theirs }) => {
      if (theirs.error)
        return `| ${name} | ${operators} / fails | ${transposes} | ${milliseconds.toFixed(0)} ms | | ${error.toExponential(1)} | ${dB(w8a8.dB)} / ${theirs.error} |`;
      const [count, moved] = show(theirs.float);
      const float = theirs.float?.failure ?? theirs.float?.error?.toExponential(1) ?? '-';
      const [, , int8] = show(theirs.int8);
      return `| ${name} | ${operators} / ${count} | ${transposes} / ${moved} | ${milliseconds.toFixed(0)} ms, ${theirs.seconds.toFixed(1)} s | ${((1000 * theirs.seconds) / milliseconds).toFixed(0)} | ${error.toExponential(1)} / ${float} | ${dB(w8a8.dB)} / ${int8} |`;
    }),
  ].join('\n');
}

const NOTE = `
onnx2tf runs with its default options and no parameter replacements, in a process of its own on the same machine; its time is that of
the float conversion alone, without imports. "fails" is what it then says.
`;

const only = flag('model');
const theirs = flag('onnx2tf') !== undefined;
const rows = [];
let text = '';
for (const name of Object.keys(MODELS)) {
  if (only && only !== name) continue;
  rows.push(await measure(name));
  console.error(`${name}: ${JSON.stringify(rows.at(-1))}`);
  text = `# ONNX models as TFLite${theirs ? ', beside onnx2tf 1.29.24' : ''}

    npm run -s build && node bench/tflite-models.mjs --write${theirs ? ' --onnx2tf <python>' : ''}

${theirs ? renderBoth(rows) : renderOwn(rows)}
${theirs ? NOTE : ''}`;
  if (!process.argv.includes('--write')) continue;
  // After every model: a slow one is no loss of the others.
  const path = join(root, 'bench', 'results', theirs ? 'tflite-vs-onnx2tf.md' : 'tflite-models.md');
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}
console.log(text);
