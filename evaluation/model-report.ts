import type { Execution, TargetName } from '../targets/target.ts';
import type { NpuReport } from './compare-npu.ts';
import type { OutputComparison } from './compare-runs.ts';
import type { ValueComparison } from './compare-values.ts';
import type { PlanLine, ReportFile } from './report.ts';

/** How one target's artifact of an ONNX model compares with the float model. */
export interface ModelTargetReport {
  readonly engine: string;
  readonly execution: Execution;
  /** Bytes that go to the phone. */
  readonly bytes: number;
  readonly files: readonly ReportFile[];
  /** Every output of the artifact against the float model. */
  readonly outputs: readonly OutputComparison[];
  /** Every output of the artifact against ONNX Runtime on the same QDQ model: how exactly the engine computes. */
  readonly twin?: readonly OutputComparison[];
  /** Every output of that QDQ model on ONNX Runtime against the float model: what the integers themselves cost. */
  readonly twinOutputs?: readonly OutputComparison[];
  /** Every value, in order of computation: the QDQ graph against the float graph, both on ONNX Runtime. */
  readonly values: readonly ValueComparison[];
  /** The first value, in order of computation, whose SQNR falls under the threshold. */
  readonly firstDivergence?: string;
  /** Files that vendors' plugins compiled, beside LiteRT on the same inputs. */
  readonly npu?: readonly NpuReport[];
  /** Seconds of one run. */
  readonly seconds: number;
  readonly notes: readonly string[];
}

export interface SampleReport {
  readonly source: string;
  readonly samples: number;
  readonly random: boolean;
}

/** `report.json` of a compiled ONNX model; figures depend on the machine's engines, so it is not part of the manifest. */
export interface ModelReport {
  readonly format: 1;
  readonly kind: 'model';
  readonly source: string;
  readonly soc: string;
  readonly scheme: string;
  readonly inputs: readonly { readonly name: string; readonly type: string }[];
  readonly calibration: SampleReport;
  readonly evaluation: SampleReport;
  /** Outputs of the frozen, simplified float graph against the untouched model; absent where that cannot be run. */
  readonly simplified?: readonly OutputComparison[];
  readonly targets: Readonly<Partial<Record<TargetName, ModelTargetReport>>>;
  readonly plan: readonly PlanLine[];
  /** What makes the figures doubtful: random samples, samples of another scale. */
  readonly warnings: readonly string[];
  readonly remarks: readonly string[];
  /** dB under which a value counts as diverged. */
  readonly divergenceThreshold: number;
  readonly command?: string;
  readonly versions?: Readonly<Record<string, string>>;
}
