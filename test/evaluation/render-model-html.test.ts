import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gradeModel } from '../../evaluation/grade-model.ts';
import type { ModelReport } from '../../evaluation/model-report.ts';
import { renderModelHtml } from '../../evaluation/render-model-html.ts';
import { writeModelReport } from '../../evaluation/write-report.ts';
import { hasBrowser, inspectPage, launchBrowser } from './browser.ts';
import { makeModelReport } from './make-model-report.ts';
import { HOSTILE, VALUES } from './make-report.ts';

let folder: string;
let browser: Browser;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'npuc-model-report-'));
  if (hasBrowser) browser = await launchBrowser();
});
afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('both files are written, the same bytes for the same report', () => {
  writeModelReport(folder, makeModelReport());
  const first = readFileSync(join(folder, 'report.html'), 'utf8');
  writeModelReport(folder, makeModelReport());
  expect(readFileSync(join(folder, 'report.html'), 'utf8')).toBe(first);
  expect(JSON.parse(readFileSync(join(folder, 'report.json'), 'utf8')).targets.qnn.outputs[1].sqnr).toBe('NaN');
  expect(first).not.toMatch(/https?:\/\/|file:\/\/|\/work\/|\/home\/|\/root\//);
});

test('the worst output grades a target, and no number is no success', () => {
  const { onnx, qnn, tflite } = makeModelReport().targets;
  expect([onnx, qnn, tflite].map((target) => gradeModel(target!))).toEqual(['close', 'broken', 'loss']);
  expect(gradeModel({ ...onnx!, execution: 'read-back-only' })).toBe('unproven');
  expect(gradeModel({ ...onnx!, outputs: [] })).toBe('unproven');
});

describe.skipIf(!hasBrowser)('in a browser', { timeout: 60_000 }, () => {
  async function look(
    report: ModelReport,
    viewport: { width: number; height: number },
    check: (page: Page) => Promise<void>,
  ): Promise<void> {
    const path = join(folder, 'look.html');
    writeFileSync(path, renderModelHtml(report));
    await inspectPage(browser, pathToFileURL(path).href, { viewport }, ({ page }) => check(page));
  }
  const WIDE = { width: 1280, height: 900 };

  test('says what was compiled, the verdict, the warning and every output', async () => {
    await look(makeModelReport(), WIDE, async (page) => {
      expect(await page.title()).toBe('face <b>bold</b>.onnx for SM8750: Broken');
      expect(await page.locator('.verdict').textContent()).toContain(
        'the worst output of qnn keeps NaN; the worst output of tflite keeps 33.3 dB; the worst output of onnx keeps 47.3 dB',
      );
      expect(await page.locator('.verdict').textContent()).toContain(
        'Warning: the figures below are from random inputs',
      );
      expect(await page.locator('.card').count()).toBe(3);
      const rows = page.locator('#outputs tbody tr');
      expect(await rows.count()).toBe(2);
      expect(await rows.nth(1).locator('td').first().textContent()).toBe('boxes');
      expect(await page.locator('#outputs .low').count()).toBe(1);
    });
  });

  test('lists every value with its SQNR once, to be searched and sorted', async () => {
    await look(makeModelReport(), WIDE, async (page) => {
      expect(await page.locator('details[id^=values-]').count()).toBe(2);
      expect(await page.locator('#network .point').count()).toBe(2 * VALUES);
      await page.locator('#values-onnx summary').click();
      const rows = page.locator('#values-onnx-table tbody tr:visible');
      expect(await rows.count()).toBe(VALUES);
      await page.locator('[data-filter=values-onnx-table]').fill('q_proj');
      expect(await rows.count()).toBe(3);
      await page.locator('[data-filter=values-onnx-table]').fill('');
      await page.locator('#values-onnx-table th').nth(2).getByRole('button').click();
      const figures = (await page.locator('#values-onnx-table tbody td:nth-child(3)').allTextContents()).map(Number);
      const finite = figures.filter((each) => Number.isFinite(each));
      expect(finite).toHaveLength(VALUES - 1);
      expect(finite).toEqual([...finite].sort((a, b) => a - b));
    });
  });

  test('shows names as text and never as markup', async () => {
    await look(makeModelReport(), WIDE, async (page) => {
      expect(await page.locator('script').count()).toBe(1);
      expect(await page.locator('h1 b, .note i').count()).toBe(0);
      expect(await page.locator('#outputs').textContent()).toContain(HOSTILE);
      expect(await page.locator('.remarks').textContent()).toContain('</script><script>alert(2)</script>');
    });
  });

  test('fits a phone, with names that cannot be broken and nothing quantized', async () => {
    const name = 'Unbreakable'.repeat(40);
    const report = makeModelReport();
    const onnx = report.targets.onnx!;
    const unruly: ModelReport = {
      ...report,
      source: name,
      inputs: [{ name, type: name }],
      targets: { onnx: { ...onnx, values: [], outputs: [{ ...onnx.outputs[0]!, name }], notes: [name] } },
      plan: [],
      warnings: [name],
    };
    for (const each of [report, unruly]) {
      await look(each, { width: 420, height: 860 }, async (page) => {
        await page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true");
        expect(await page.evaluate<number>('document.documentElement.scrollWidth - innerWidth')).toBe(0);
      });
    }
  });
});
