import { basename } from 'node:path';
import { randomSamples, readSamples, type Samples, samplePorts } from '../../calibration/samples.ts';
import { defaultText } from '../../calibration/texts.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { drawWindows } from '../../evaluation/check/bootstrap.ts';
import type { ModelInputs, Snapshot } from '../../evaluation/check/measure-model.ts';
import { modelTargets } from '../../targets/index.ts';
import type { ModelTargetName } from '../../targets/target.ts';
import type { CompileOptions } from './compile-decoder.ts';
import { type OpenModelOptions, openModel } from './open-model.ts';
import { version } from './version.ts';

/** Samples that are made up where the user gives none. */
const RANDOM = { calibration: { count: 8, seed: 1 }, evaluation: { count: 16, seed: 2 } } as const;

/** An ONNX model calibrated on a draw of the samples; 0 is all of them. */
export type ModelSubject = (seed: number) => ModelInputs;

/**
 * Opens an ONNX model for a check.
 * @throws as openModel and readSamples
 */
export function openModelSubject(
  options: CompileOptions,
  bind: readonly string[],
  target: ModelTargetName,
  passes: OpenModelOptions = {},
): ModelSubject {
  const { module, digest } = openModel(options.source, bind, passes);
  const calibration = readFor('calibration', options.calibrationText, module);
  const evaluation = readFor('evaluation', options.evaluation.text, module);
  const shared = {
    name: basename(options.source),
    digest,
    path: options.source,
    module,
    trace: (): Snapshot[] => {
      const snapshots: Snapshot[] = [];
      openModel(options.source, bind, {
        ...passes,
        onChange: (pass, now) => snapshots.push({ pass, module: cloneModule(now) }),
      });
      return snapshots;
    },
    lower: (lowered: Module): void => {
      modelTargets[target].lower(lowered, options.soc, options.recipe);
    },
    evaluation,
    recipe: options.recipe,
    format: modelTargets[target].format(options.soc),
    target,
    npuc: version(),
    open: (path: string) => openWithJavaScript(path, pickJavaScriptEngine(), options.threads),
  };
  return (seed) => ({ ...shared, calibration: { ...calibration, feeds: drawWindows(calibration.feeds, seed) } });
}

function readFor(kind: 'calibration' | 'evaluation', path: string, module: Module): Samples {
  const graph = module.graph();
  if (path !== defaultText(kind)) return readSamples(path, samplePorts(graph));
  return randomSamples(graph, RANDOM[kind].count, RANDOM[kind].seed);
}
