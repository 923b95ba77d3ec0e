/**
 * Processor time of compiling one QDQ model to an HTP context binary: npuc's path (with its reading back, naming and checks)
 * against the Python packages on the same model, interleaved. Prints JSON; committed in bench/results/qnn-compile.json.
 *
 *     python3 -m venv venv && venv/bin/pip install onnxruntime==1.32.0 onnxruntime-qnn==2.7.0
 *     npm run build && node bench/qnn-compile.mjs --python venv/bin/python build/qnn/qdq/decode.onnx [more models]
 *
 * External data must lie beside a model as `weights.data`. Seconds are user + system of all processes.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, linkSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    soc: { type: 'string', default: 'SM8750' },
    runs: { type: 'string', default: '5' },
  },
  allowPositionals: true,
});
const dist = join(dirname(fileURLToPath(import.meta.url)), '..', 'dist');
const { findSoc } = await import(join(dist, 'targets/socs.js'));
const { requireToolchain } = await import(join(dist, 'targets/qnn/toolchain.js'));
const soc = findSoc(values.soc);
const toolchain = requireToolchain('qnn');
const DATA = 'weights.data';

const OURS = `
const { compileContext } = await import(process.argv[1] + '/targets/qnn/compile-context.js');
const { findSoc } = await import(process.argv[1] + '/targets/socs.js');
const { requireToolchain } = await import(process.argv[1] + '/targets/qnn/toolchain.js');
const [, , path, data, out, soc] = process.argv;
await compileContext(requireToolchain('qnn'), [{ name: 'model', path, externalData: data ? [data] : [] }], {
  soc: findSoc(soc), share: false, outputFolder: out,
});`;

const THEIRS = `
import os, sys
import onnxruntime as ort, onnxruntime_qnn
path, out, soc = sys.argv[1:]
ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
device = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"][:1]
options = ort.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
options.add_session_config_entry("ep.context_enable", "1")
options.add_session_config_entry("ep.context_file_path", os.path.join(out, "model_ctx.onnx"))
options.add_session_config_entry("ep.context_embed_mode", "0")
options.add_provider_for_devices(device, {
    "backend_path": os.path.join(os.path.dirname(onnxruntime_qnn.__file__), "libQnnHtp.so"),
    "soc_model": soc,
    "htp_graph_finalization_optimization_mode": "3",
})
ort.InferenceSession(path, sess_options=options)`;

/** User and system seconds of a command and all that it started and waited for. */
function measure(command) {
  const timed = spawnSync('bash', ['-c', 'TIMEFORMAT="%U %S"; time "$@" >/dev/null 2>&1', 'bash', ...command], {
    encoding: 'utf8',
  });
  if (timed.status !== 0) throw new Error(`${command.slice(0, 2).join(' ')} failed with ${timed.status}`);
  const [user, system] = timed.stderr.trim().split('\n').at(-1).split(' ').map(Number);
  return user + system;
}

const digest = (path) => createHash('sha256').update(readFileSync(path)).digest('hex');
const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
const round = (value, digits = 2) => Number(value.toFixed(digits));

function compare(source) {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-bench-'));
  try {
    // Both read the same file.
    const model = join(folder, 'model.onnx');
    copyFileSync(source, model);
    const data = join(dirname(resolve(source)), DATA);
    const external = existsSync(data);
    if (external) {
      try {
        linkSync(data, join(folder, DATA));
      } catch {
        copyFileSync(data, join(folder, DATA));
      }
    }
    const seconds = { npuc: [], python: [] };
    const bytes = {};
    for (let run = 0; run < Number(values.runs); run++) {
      for (const path of run % 2 === 0 ? ['npuc', 'python'] : ['python', 'npuc']) {
        const out = mkdtempSync(join(folder, `${path}-`));
        const node = [
          process.execPath,
          '--input-type=module',
          '-e',
          OURS,
          dist,
          model,
          external ? DATA : '',
          out,
          soc.name,
        ];
        const python = [values.python, '-c', THEIRS, model, out, String(soc.number)];
        seconds[path].push(measure(path === 'npuc' ? node : python));
        bytes[path] = statSync(join(out, 'model_ctx_qnn.bin')).size;
        rmSync(out, { recursive: true });
      }
    }
    const [ours, theirs] = [median(seconds.npuc), median(seconds.python)];
    return {
      model: basename(source),
      sha256: digest(source),
      ...(external ? { data: digest(data) } : {}),
      binaryBytes: bytes.npuc,
      pythonBinaryBytes: bytes.python,
      npucSeconds: round(ours),
      pythonSeconds: round(theirs),
      ratio: round(ours / theirs, 3),
      runs: { npuc: seconds.npuc.map((each) => round(each)), python: seconds.python.map((each) => round(each)) },
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const results = positionals.map(compare);
process.stdout.write(
  `${JSON.stringify({ cpu: cpus()[0].model, soc: soc.name, toolchain: toolchain.versions, median: `of ${values.runs} interleaved runs`, results }, undefined, 1)}\n`,
);
