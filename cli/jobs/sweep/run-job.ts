import { join } from 'node:path';
import type { Progress } from '../../../compiler/progress.ts';
import type { SweepTarget } from '../../../evaluation/sweep/sweep-report.ts';
import { compileOptions } from '../../compile.ts';
import { type CompileOptions, NO_EVALUATION, openDecoder } from '../compile-decoder.ts';
import { compilePoint, vendorSeconds } from './compile-point.ts';
import { evaluateCache, quantizeFor } from './evaluate-cache.ts';
import type { JobContext } from './job-context.ts';
import type { JobResult, SweepJob } from './sweep-job.ts';

/** Does a job in this process. What comes of it does not depend on where that is. @throws what compiling and evaluating throw */
export async function runJob(key: string, job: SweepJob, context: JobContext): Promise<JobResult> {
  const meter = startMeter();
  const { progress } = context;
  const out = join(context.work, key);
  const options = optionsOf(job, out, progress);
  const target = job.config.target![0] as SweepTarget;
  switch (job.kind) {
    case 'quantize': {
      const model = await openDecoder(options);
      await quantizeFor(model, options, target).finally(() => model.checkpoint.close());
      return { kind: 'quantize', ...meter() };
    }
    case 'compile': {
      const point = await compilePoint(out, target, job.simulate, options, context);
      return { kind: 'compile', ...point, cpuSeconds: meter(vendorSeconds(progress.stages)).cpuSeconds };
    }
    case 'evaluate': {
      const quality = await evaluateCache(job, options);
      return { kind: 'evaluate', ...quality, seconds: meter().seconds };
    }
  }
}

function optionsOf({ config }: SweepJob, out: string, progress: Progress): CompileOptions {
  const options = compileOptions({ ...config, out, evaluate: NO_EVALUATION }, { force: true, quiet: true });
  return { ...options, progress };
}

/** Seconds and processor time since now. */
function startMeter(): (vendor?: number) => { seconds: number; cpuSeconds: number } {
  const started = performance.now();
  const before = process.cpuUsage();
  return (vendor = 0) => {
    const { user, system } = process.cpuUsage(before);
    return { seconds: (performance.now() - started) / 1000, cpuSeconds: (user + system) / 1e6 + vendor };
  };
}
