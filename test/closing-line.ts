import type { Reporter, TestModule } from 'vitest/node';

/** Ends a run with `N passed, N failed`; in CI a skipped test is a failed one. */
export class ClosingLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    let passed = 0;
    let failed = 0;
    let skipped = 0;
    for (const module of modules) {
      if (module.errors().length > 0) failed++;
      for (const test of module.children.allTests()) {
        const state = test.result().state;
        if (state === 'passed') passed++;
        else if (state === 'failed') failed++;
        else if (process.env.CI) {
          process.stdout.write(`SKIPPED IN CI: ${module.moduleId} ${test.fullName}\n`);
          failed++;
        } else skipped++;
      }
    }
    if (failed > 0) process.exitCode = 1;
    process.stdout.write(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`);
  }
}
