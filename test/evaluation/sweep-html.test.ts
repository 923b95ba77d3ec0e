import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, BrowserContextOptions } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { markFront } from '../../evaluation/sweep/choose-points.ts';
import { renderSweepCsv } from '../../evaluation/sweep/render-sweep-csv.ts';
import { renderSweepHtml } from '../../evaluation/sweep/render-sweep-html.ts';
import { renderSweepText } from '../../evaluation/sweep/render-sweep-text.ts';
import type { SweepReport } from '../../evaluation/sweep/sweep-report.ts';
import { describePixels, hasBrowser, inspectPage, launchBrowser, type WatchedPage } from './browser.ts';
import { makePoint, makeSweep } from './make-sweep.ts';

const WIDE = { width: 1280, height: 900 };
const PHONE = { width: 420, height: 860 };

/** A sweep of a hundred points, some of which failed or do not fit, of a model with an endless name. */
function makeLarge(): SweepReport {
  const points = Array.from({ length: 100 }, (_, i) => ({
    ...makePoint({
      scheme: ['w4a16', 'w8a16', 'w8a8'][i % 3]!,
      cache: 128 * (1 + i),
      memory: 1e9 + i * 1e7,
      seconds: 1 + i / 50,
      ratio: i % 7 === 0 ? Number.NaN : 2 - i / 100,
    }),
    ...(i === 3 ? { failure: { code: 'QN011', message: 'Unbreakable'.repeat(30) } } : {}),
  }));
  return {
    ...makeSweep(),
    source: 'Unbreakable'.repeat(30),
    points: markFront(points),
    budget: { budget: 'memory<=1kB', fitting: 0, impossible: ['memory<=1kB is impossible'] },
  };
}

describe('a sweep as text', () => {
  test('CSV has a line for every point, and nothing that a spreadsheet would compute', () => {
    const report = makeSweep();
    const hostile = {
      ...report,
      points: report.points.map((point) => ({ ...point, failure: { code: 'X', message: '=1+1, "quoted"' } })),
    };
    const lines = renderSweepCsv(hostile).trimEnd().split('\r\n');
    expect(lines).toHaveLength(1 + report.points.length);
    expect(lines[0]).toMatch(/^target,SoC,scheme,tokens,cache,memory \(bytes\)/);
    expect(lines[1]).toContain('"X =1+1, ""quoted"""');
    expect(renderSweepCsv({ ...report, points: [{ ...report.points[0]!, target: '=cmd' as 'qnn' }] })).toContain(
      "'=cmd",
    );
  });

  test('the table marks the front and the choice', () => {
    const text = renderSweepText(makeSweep());
    expect(text).toContain('12 points, ');
    expect(text.match(/^>/gm)).toHaveLength(1);
    expect(text).toContain('best within memory<=1GiB: ');
    expect(text).toMatch(/SC8380XP Llama-3.2-3B.*\+214 %/);
  });
});

describe.skipIf(!hasBrowser)('a sweep in a browser', () => {
  let browser: Browser;
  let folder: string;
  let url: string;
  let large: string;
  beforeAll(async () => {
    browser = await launchBrowser();
    folder = mkdtempSync(join(tmpdir(), 'npuc-sweep-html-'));
    const write = (name: string, report: SweepReport): string => {
      writeFileSync(join(folder, name), renderSweepHtml(report));
      return pathToFileURL(join(folder, name)).href;
    };
    url = write('sweep.html', makeSweep());
    large = write('large.html', makeLarge());
  });
  afterAll(async () => {
    await browser?.close();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  const look = (
    options: BrowserContextOptions,
    inspect: (watched: WatchedPage) => Promise<void>,
    address = url,
  ): Promise<void> => inspectPage(browser, address, options, inspect);

  test.each([
    ['wide, light', WIDE, 'light'],
    ['wide, dark', WIDE, 'dark'],
    ['phone, dark', PHONE, 'dark'],
  ] as const)('%s: is drawn, fits the window, asks for nothing', async (_name, viewport, colorScheme) => {
    for (const address of [url, large]) {
      await look(
        { viewport, colorScheme },
        async ({ page }) => {
          await page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true");
          expect(await page.evaluate<number>('document.documentElement.scrollWidth - innerWidth')).toBe(0);
          const { colours, drawn } = await describePixels(browser, await page.screenshot());
          expect(colours).toBeGreaterThan(40);
          expect(drawn).toBeGreaterThan(0.02);
          const broken = await page.evaluate<string[]>(`
            [...document.querySelectorAll('svg *')]
              .flatMap((node) => [...node.attributes])
              .filter(({ name, value }) => name !== 'aria-label' && /NaN|Infinity|undefined/.test(value))
              .map(({ name, value }) => name + '=' + value)`);
          expect(broken).toEqual([]);
        },
        address,
      );
    }
  });

  test('a chart for every SoC and figure, a mark for every point, lower and further left for less', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      expect(await page.locator('figure.scatter').count()).toBe(4);
      expect(await page.locator('figure.scatter .spot').count()).toBe(24);
      const report = makeSweep();
      expect(await page.locator('figure.scatter .filled').count()).toBe(
        2 * report.points.filter(({ front }) => front).length,
      );
      const marks = await page
        .locator('figure.scatter')
        .first()
        .locator('a')
        .evaluateAll((nodes) =>
          nodes.map((node) => {
            const { x, y } = node.getBoundingClientRect();
            return { x, y, label: node.getAttribute('aria-label')! };
          }),
        );
      const points = report.points.filter(({ soc }) => soc === 'SM8650');
      marks.forEach((mark, i) => {
        expect(mark.label).toContain(points[i]!.id);
        marks.forEach((other, j) => {
          if (points[i]!.plan.memoryBytes < points[j]!.plan.memoryBytes) expect(mark.x).toBeLessThan(other.x);
          if (points[i]!.plan.seconds! < points[j]!.plan.seconds! - 0.01) expect(mark.y).toBeGreaterThan(other.y);
        });
      });
    });
  });

  test('pointing at a mark names it, the keyboard reaches it, and it leads to its row', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      const figure = page.locator('figure.scatter').first();
      await figure.locator('a').nth(2).hover();
      const point = makeSweep().points[2]!;
      expect(await figure.locator('.readout').textContent()).toContain(point.id);
      await figure.locator('a').first().focus();
      expect(await figure.locator('.readout').textContent()).toContain(makeSweep().points[0]!.id);
      await page.keyboard.press('Enter');
      expect(await page.evaluate<string>("document.querySelector('tr:target').textContent")).toContain('SM8650');
    });
  });

  test('the table sorts by numbers and finds words', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      const column = async (): Promise<number[]> =>
        await page
          .locator('#points-table tbody tr:not([hidden]) td:nth-child(7)')
          .evaluateAll((cells) =>
            cells.map((cell) => Number((cell as unknown as { dataset: { v: string } }).dataset.v)),
          );
      await page.locator('#points-table th', { hasText: 'memory' }).locator('button').click();
      const sorted = await column();
      expect(sorted).toEqual([...sorted].sort((a, b) => a - b));
      await page.locator('#points-table th', { hasText: 'memory' }).locator('button').press('Enter');
      expect(await column()).toEqual([...sorted].reverse());
      await page.locator('[data-filter="points-table"]').fill('SM8750 w8a8');
      expect(await column()).toHaveLength(3);
      expect(await page.locator('[data-count="points-table"]').textContent()).toBe('3 of 12');
    });
  });

  test('the answer is in the first window, and a budget that nothing is within says so', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      const box = (await page.locator('.verdict').boundingBox())!;
      expect(box.y + box.height).toBeLessThan(WIDE.height);
      expect(await page.locator('.verdict').textContent()).toContain(makeSweep().budget!.best!);
      expect(await page.locator('tr.chosen').count()).toBe(1);
    });
    await look(
      { viewport: WIDE },
      async ({ page }) => {
        expect(await page.locator('.verdict').textContent()).toContain('memory<=1kB is impossible');
        expect(await page.locator('tr.unfit').count()).toBe(1);
      },
      large,
    );
  });

  test('without a script everything can be read', async () => {
    await look({ viewport: WIDE, javaScriptEnabled: false }, async ({ page }) => {
      expect(await page.locator('#points-table tbody tr').count()).toBe(12);
      expect(await page.locator('#published tbody tr').count()).toBe(6);
      expect(await page.locator('.readout').first().isVisible()).toBe(false);
    });
  });
});

test('the page of a hundred points stays below a megabyte', () => {
  expect(renderSweepHtml(makeLarge()).length).toBeLessThan(1e6);
});
