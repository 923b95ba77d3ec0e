import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import fc from 'fast-check';
import type { Browser, BrowserContextOptions } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { compareAligned, describeAlignment, type RealTensor } from '../../../evaluation/diff/align-values.ts';
import { compareBuilds } from '../../../evaluation/diff/compare-builds.ts';
import { describeDiff } from '../../../evaluation/diff/describe-diff.ts';
import { renderDiffHtml } from '../../../evaluation/diff/render-diff-html.ts';
import { renderDiffText } from '../../../evaluation/diff/render-diff-text.ts';
import { describePixels, hasBrowser, inspectPage, launchBrowser, type WatchedPage } from '../browser.ts';
import { HOSTILE, makeDiff, makeView } from './make-diff.ts';

function tensor(shape: readonly number[], seed = 1): RealTensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, data: Float32Array.from({ length: size }, (_, i) => Math.sin((i + seed) * 12.9898) * 3) };
}

/** The same elements with axis i of the result being axis order[i] of the source. */
function turn({ shape, data }: RealTensor, order: readonly number[]): RealTensor {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const turned = order.map((axis) => shape[axis]!);
  const out = new Float32Array(data.length);
  for (let i = 0; i < out.length; i++) {
    let rest = i;
    let source = 0;
    for (let axis = turned.length - 1; axis >= 0; axis--) {
      source += (rest % turned[axis]!) * strides[order[axis]!]!;
      rest = Math.floor(rest / turned[axis]!);
    }
    out[i] = data[source]!;
  }
  return { shape: turned, data: out };
}

describe('comparing values of any layout and scale', () => {
  test('NHWC against NCHW is the same value, also where lengths are equal', () => {
    for (const shape of [
      [1, 3, 5, 7],
      [2, 4, 4, 4],
    ]) {
      const value = tensor(shape);
      const found = compareAligned(value, turn(value, [0, 2, 3, 1]))!;
      expect(found.sqnr).toBe(Number.POSITIVE_INFINITY);
      expect(found.permutation).toEqual([0, 3, 1, 2]);
      expect(describeAlignment(found)).toEqual(['axes in the order 0, 3, 1, 2']);
    }
  });

  test('any order of up to four axes is undone', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 0, max: 1000 }),
        (shape, seed) => {
          const order = shape.map((_, i) => i).sort((a, b) => ((a + seed) % 3) - ((b + seed) % 3) || b - a);
          const value = tensor(shape, seed);
          expect(compareAligned(value, turn(value, order))!.sqnr).toBe(Number.POSITIVE_INFINITY);
        },
      ),
    );
  });

  test('a changed scale is told from noise', () => {
    const value = tensor([4, 8]);
    const larger = { ...value, data: value.data.map((each) => each * 1.5) };
    const found = compareAligned(value, larger)!;
    expect(found.sqnr).toBeCloseTo(6.02, 1);
    expect(found.gain).toBeCloseTo(1 / 1.5, 5);
    expect(found.cosine).toBeCloseTo(1, 6);
    expect(describeAlignment(found)[0]).toMatch(/^1\.500 times as large: /);
    const noisy = { ...value, data: value.data.map((each, i) => each + (i % 2 === 0 ? 0.3 : -0.3)) };
    expect(describeAlignment(compareAligned(value, noisy)!)).toEqual([]);
  });

  test('values of other shapes are not compared', () => {
    expect(compareAligned(tensor([2, 3]), tensor([2, 4]))).toBeUndefined();
    expect(compareAligned(tensor([2, 3]), tensor([6]))).toBeUndefined();
    expect(compareAligned(tensor([2, 6]), tensor([3, 4]))).toBeUndefined();
  });
});

test('what changed is counted, ranked and said', () => {
  const diff = makeDiff();
  expect(describeDiff(diff)).toBe(
    '1 setting, 1 operator count, 16 values, 6 weights changed; worse quality, 600 kB where it was 1.00 MB (-400 kB).',
  );
  const text = renderDiffText(diff, false);
  expect(text).toMatch(/kl +0\.01 +0\.07 +worse/);
  expect(text).toMatch(/scheme +w8a16 +w4a16/);
  expect(text).not.toContain('soc');
  const [first] = text.split('\n').filter((line) => line.startsWith('layers.'));
  expect(first).toContain('-6.0');
  expect(first).toMatch(/^layers\.1\./);
});

test('a build is itself', () => {
  const view = makeView('one', 0);
  const diff = compareBuilds(view, view);
  expect(diff.values.filter(({ changed }) => changed)).toEqual([]);
  expect(diff.weights.filter(({ changed }) => changed)).toEqual([]);
  expect(describeDiff(diff)).toBe('Nothing changed: the same quality, the same size, 1.00 MB.');
});

test('sides without anything in common are refused', () => {
  const view = makeView('one', 0);
  const other = {
    ...view,
    ops: new Map([['Conv', 1]]),
    values: [],
    weights: [],
    quality: [],
  };
  expect(() => compareBuilds(view, other)).toThrow(expect.objectContaining({ code: 'CK005', exitCode: 2 }));
});

test('the page is the same bytes for the same diff, and under a megabyte for a model of 32 layers', () => {
  expect(renderDiffHtml(makeDiff())).toBe(renderDiffHtml(makeDiff()));
  const values = makeView('large', 3, 32);
  // As many values as such a decoder has.
  const many = {
    ...values,
    values: Array.from({ length: 10 }, (_, k) =>
      values.values.map((value) => ({ ...value, name: `${value.name}.part_of_attention_${k}` })),
    ).flat(),
  };
  const page = renderDiffHtml(compareBuilds(many, { ...many, title: 'other', values: many.values.slice(5) }));
  expect(page.length).toBeLessThan(1_000_000);
  expect(many.values.length).toBeGreaterThan(1500);
});

describe.skipIf(!hasBrowser)('in a browser', () => {
  let browser: Browser;
  let folder: string;
  let url: string;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-diff-html-'));
    writeFileSync(join(folder, 'diff.html'), renderDiffHtml(makeDiff()));
    url = pathToFileURL(join(folder, 'diff.html')).href;
    browser = await launchBrowser();
  });
  afterAll(async () => {
    await browser.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const look = (options: BrowserContextOptions, use: (watched: WatchedPage) => Promise<void>): Promise<void> =>
    inspectPage(browser, url, options, use);

  test.each([
    ['light', 'wide', { width: 1280, height: 900 }],
    ['dark', 'wide', { width: 1280, height: 900 }],
    ['dark', 'phone', { width: 390, height: 844 }],
  ] as const)(
    'is drawn in %s on a %s window, without a request and nothing beside the page',
    async (colorScheme, _, viewport) => {
      await look({ colorScheme, viewport }, async ({ page }) => {
        const { colours, drawn } = await describePixels(browser, await page.screenshot({ fullPage: true }));
        expect(colours).toBeGreaterThan(30);
        expect(drawn).toBeGreaterThan(0.03);
        const wide = await page.evaluate<number>('document.documentElement.scrollWidth - innerWidth');
        expect(wide).toBeLessThanOrEqual(0);
        const broken = await page.evaluate<string[]>(`[...document.querySelectorAll('svg *')]
        .flatMap((node) => [...node.attributes]).filter(({ value }) => /NaN|Infinity|undefined/.test(value))
        .map(({ name, value }) => name + '=' + value)`);
        expect(broken).toEqual([]);
      });
    },
  );

  test('the answer is in the first window, and names are text', async () => {
    await look({ viewport: { width: 1280, height: 900 } }, async ({ page }) => {
      const box = (await page.locator('.verdict').boundingBox())!;
      expect(box.y + box.height).toBeLessThan(900);
      expect(await page.locator('h1').textContent()).toBe('old <b>build</b> and new');
      expect(await page.locator('#values').textContent()).toContain(HOSTILE);
      expect(await page.locator('script').count()).toBe(1);
    });
  });

  test('tables sort and filter, by keyboard too', async () => {
    await look({ viewport: { width: 1280, height: 900 } }, async ({ page }) => {
      const rows = page.locator('#values tbody tr:visible');
      const all = await rows.count();
      await page.getByRole('searchbox').first().fill('layers.1 changed');
      expect(await rows.count()).toBeLessThan(all);
      expect(await page.locator('[data-count="values"]').textContent()).toBe(`6 of ${all}`);
      await page.getByRole('searchbox').first().fill('');
      const head = page.locator('#values th').nth(6);
      await head.getByRole('button').focus();
      await page.keyboard.press('Enter');
      expect(await head.getAttribute('aria-sort')).toBe('ascending');
      const figures = (await page.locator('#values tbody td:nth-child(7)').allTextContents()).map(Number);
      expect(figures).toEqual([...figures].sort((a, b) => a - b));
    });
  });

  test('the waterfall has a bar for every layer of each side, named for screen readers, and a table beside it', async () => {
    await look({ viewport: { width: 1280, height: 900 } }, async ({ page }) => {
      expect(await page.locator('#waterfall rect.a').count()).toBe(3);
      expect(await page.locator('#waterfall rect.b').count()).toBe(3);
      const [a, b] = [
        await page.locator('#waterfall rect.a').nth(1).boundingBox(),
        await page.locator('#waterfall rect.b').nth(1).boundingBox(),
      ];
      // The second layer is 6 dB worse: four times the noise.
      expect(b!.height / a!.height).toBeCloseTo(10 ** 0.6, 0);
      expect(await page.locator('#waterfall').getAttribute('aria-label')).toContain('3 layers');
      expect(await page.locator('#weights svg[role=img]').first().getAttribute('aria-label')).toMatch(
        /q_proj\.weight, -0\.1/,
      );
      await page.locator('.waterfall summary').click();
      expect(await page.locator('#steps tbody tr').count()).toBe(3);
    });
  });

  test('is whole without its script', async () => {
    await look({ javaScriptEnabled: false }, async ({ page }) => {
      expect(await page.locator('.js-only:visible').count()).toBe(0);
      expect(await page.locator('#values tbody tr').count()).toBe(16);
    });
  });
});
