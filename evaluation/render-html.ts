import type { Report } from './report.ts';

export function renderHtml(report: Report): string {
  return `<!doctype html><title>npuc</title><pre>${JSON.stringify(report)}</pre>`;
}
