// Numbers as people read them.

const MINUS = "\u2212";

/** A number with about `digits` significant digits; "–" for what is not known. */
export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e6 || size < 1e-3
      ? value.toExponential(digits - 1)
      : size >= 10 ** digits
        ? Math.round(value).toLocaleString("en")
        : value.toPrecision(digits);
  return text.replaceAll("-", MINUS);
}

export function whole(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

export function withUnit(value: number | null | undefined, unit: string, digits = 3): string {
  const text = number(value, digits);
  return unit === "" || text === "–" ? text : `${text} ${unit}`;
}

export function percent(value: number | null | undefined, digits = 0): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = (100 * value).toFixed(value > 0 && value < 0.01 ? 2 : digits);
  return `${text} %`;
}

/** A share between 0 and 1 as statisticians write it: .87 */
export function share(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toFixed(2).replace(/^(-?)0\./, "$1.").replace("-", MINUS);
}

export function interval(lo: number | null, hi: number | null): string {
  return lo === null || hi === null ? "–" : `${share(lo)} … ${share(hi)}`;
}

export function age(seconds: number): string {
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

export function clock(ns: number): string {
  return new Date(ns / 1e6).toLocaleTimeString([], { hour12: false });
}

/** The end of a hash: enough to tell two apart. */
export function short(hash: string): string {
  return hash.replace(/^sha256:/, "").slice(0, 8);
}
